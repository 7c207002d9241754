"""The one training of every stage: seeded, resumed to the step, best by validation, told by NaN."""

from pipeline.training.devices import make_fabric
from pipeline.training.loop import Trainer
from pipeline.training.losses import distillation
from pipeline.training.optimizer import Course, decayed, rate_factor, set_rates, sgd
from pipeline.training.recipe import Epoch, Recipe, Regime, Upkeep
from pipeline.training.steps import Loss

__all__ = [
    "Course",
    "Epoch",
    "Loss",
    "Recipe",
    "Regime",
    "Trainer",
    "Upkeep",
    "decayed",
    "distillation",
    "make_fabric",
    "rate_factor",
    "set_rates",
    "sgd",
]
