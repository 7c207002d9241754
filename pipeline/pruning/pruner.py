"""`Pruner`: what the closed loop asks of a pruning method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from torch import nn

from calibration.skeleton import Skeleton
from calibration.widths import Plan
from pipeline.pruning.constraint import Goal
from pipeline.pruning.filters import l1_norm
from pipeline.pruning.magnitude import (
    Ranking,
    UniformRanking,
    bn_scale,
    drawn_scores,
    group_norm,
    scores_by,
)
from pipeline.pruning.select import Selector
from pipeline.pruning.task import TaskLoss, plain_task
from pipeline.pruning.wgates import GateSettings, WGates
from pipeline.pruning.worth import Scores
from pipeline.training import Trainer

Method = Literal["wgates", "l1", "group-norm", "bn-scale", "uniform", "random"]


class Pruner(Protocol):
    """One method on one dense model; it may train the model while it decides."""

    trained: (
        nn.ModuleDict
    )  # everything that changes, for the checkpoint; the model is `model` in it

    def solving_epochs(self, epochs: int) -> int:
        """How many of the method's epochs it needs to decide; the rest train on fixed masks."""

    def solve(self, trainer: Trainer, goal: Goal | None, *, ramp: bool = True) -> None:
        """Learn under the goal for the trainer's epochs; `ramp` on the first time.

        The goal's smooth cost takes widths on the trainer's device. Of several processes that train
        together the first has the goal, and the others none.
        """

    def scores(self) -> Scores:
        """Group -> (channels,) scores as they are now, higher is kept."""

    def propose(self, selector: Selector, aim: float) -> Plan:
        """The plan whose cost, as the selector knows it, fits `aim`."""


def make_pruner(
    method: Method,
    model: nn.Module,
    skeleton: Skeleton,
    settings: GateSettings,
    *,
    multiple: int,
    task: TaskLoss = plain_task,
) -> Pruner:
    """The method by name, on a dense model of its own; `task` is what gated training minimises."""
    makers: dict[str, Callable[[], Pruner]] = {
        "wgates": lambda: WGates(model, skeleton, settings, multiple=multiple, task=task),
        "l1": lambda: Ranking(model, skeleton, scores_by(l1_norm, model, skeleton)),
        "group-norm": lambda: Ranking(model, skeleton, scores_by(group_norm, model, skeleton)),
        "bn-scale": lambda: Ranking(model, skeleton, scores_by(bn_scale, model, skeleton)),
        "uniform": lambda: UniformRanking(model, skeleton, scores_by(l1_norm, model, skeleton)),
        "random": lambda: UniformRanking(model, skeleton, drawn_scores(skeleton, seed=0)),
    }
    return makers[method]()
