"""W-Gates training: weights, gates and widths together under a cost: latency, MACs or parameters.

loss = cross entropy + multiplier * relu(cost / aim - 1), the multiplier by dual ascent, so that
the budget is reached rather than traded against (methods: adapter A2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibration.skeleton import Skeleton
from calibration.widths import Plan, legal_widths
from pipeline.evaluation import Top1, top1
from pipeline.pruning.gates import FilterGates, Surrogate, gated, widths_of
from pipeline.pruning.select import Cost, Selector
from pipeline.training import Trainer, decayed, sgd

# `gate_lr` and `dual_lr` are meant for this many gated steps and shrink with more: the gates then
# take the same path over the training, however long it is, with less noise on the way
LIVE_STEPS = 100
LIVE_SHARE = 2 / 3  # of the gate epochs; later gates only flicker, so masks are fixed
FIRST_MULTIPLIER = 2.0  # from zero it would wind up while the first gates are still on their way
RAMP = 0.6  # share of the gated steps over which the aim falls from dense to the budget


class CostConstraint:
    """relu(cost / aim - 1) with its Lagrange multiplier.

    `aim` may fall while training: a constraint that is violated by little at all times lets
    the task choose which gates close; one violated by much closes whole groups at once.
    """

    def __init__(self, cost: Cost, aim: float, dual_step: float) -> None:
        self.cost, self.aim, self.dual_step = cost, aim, dual_step
        self.multiplier = FIRST_MULTIPLIER
        self.predicted = float("nan")

    def loss(self, widths: Tensor) -> Tensor:
        """The term to add for (1, G) open gates; zero, and without gradient, inside the budget."""
        kept = widths.detach().clone().requires_grad_(True)
        cost = self.cost(kept).sum()
        (slope,) = torch.autograd.grad(cost, kept)
        self.predicted = float(cost.detach())
        excess = self.predicted / self.aim - 1
        if excess <= 0:
            return widths.new_zeros(())
        # a negative slope is a wiggle of the predictor: it would reward growth
        linear = ((widths - widths.detach()) * slope.clamp_min(0)).sum() / self.aim
        return self.multiplier * (linear + excess)

    def ascend(self) -> None:
        """One step of dual ascent on the violation seen last."""
        violation = self.predicted / self.aim - 1
        self.multiplier = max(0.0, self.multiplier + self.dual_step * violation)


@dataclass(frozen=True)
class GateSettings:
    """How gates are trained."""

    gate_lr: float
    weight_lr: float
    weight_decay: float
    dual_lr: float
    surrogate: Surrogate
    detach_input: bool


class WGates:
    """A dense model with its gates in place."""

    def __init__(
        self, model: nn.Module, skeleton: Skeleton, settings: GateSettings, *, multiple: int
    ) -> None:
        self.model, self.skeleton, self.settings = model, skeleton, settings
        groups = skeleton.groups
        floors = {g.name: legal_widths(g.channels, multiple)[0] for g in groups.prunable}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.gates = FilterGates(
                groups,
                model,
                floors=floors,
                surrogate=settings.surrogate,
                detach_input=settings.detach_input,
            )
        self.trained = nn.ModuleDict({"model": model, "gates": self.gates})
        self._current: Mapping[str, Tensor] = {}
        self._before: NDArray[np.bool_] | None = None

    def solving_epochs(self, epochs: int) -> int:
        return max(1, round(epochs * LIVE_SHARE))

    def solve(self, trainer: Trainer, cost: Cost, aim: float, *, ramp: bool = True) -> None:
        """Gated training for the trainer's epochs; the multiplier survives a resume.

        With `ramp` the aim falls from the dense network's cost to `aim` over the first steps.
        """
        total = trainer.recipe.epochs * trainer.steps_per_epoch
        pace = min(1.0, LIVE_STEPS / max(total, 1))
        constraint = CostConstraint(cost, aim, self.settings.dual_lr * pace)
        full = [self.skeleton.groups.full().kept]
        dense = float(cost(torch.tensor(full, dtype=torch.float32, device=trainer.fabric.device)))
        self.trained.to(trainer.fabric.device)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            constraint.multiplier = trainer.state.get("multiplier", constraint.multiplier)
            share = min(1.0, trainer.state.get("steps", 0.0) / (RAMP * total)) if ramp else 1.0
            constraint.aim = dense + share * (aim - dense)
            self._current = self.gates(self.model)
            task = nn.functional.cross_entropy(self.model(images), labels)
            return task + constraint.loss(widths_of(self._current))

        def on_step() -> None:
            constraint.ascend()
            trainer.state["multiplier"] = constraint.multiplier
            trainer.state["steps"] = trainer.state.get("steps", 0.0) + 1

        def evaluate() -> Top1:
            self.refresh()
            trainer.state |= {"predicted": constraint.predicted, **self.health()}
            return top1(self.model, trainer.data, "val", trainer.fabric)

        with self.in_place():
            trainer.train(
                self.trained,
                self._optimizer(pace),
                loss,
                evaluate=evaluate,
                on_step=on_step,
            )
        self.refresh()

    def propose(self, selector: Selector, aim: float) -> Plan:
        return selector.choose(self.scores(), self.open_widths(), aim)

    def refresh(self) -> None:
        """Recompute the gates from the weights as they are now."""
        with torch.no_grad():
            self._current = self.gates(self.model)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        with gated(self.model, self.skeleton.groups, lambda: self._current):
            yield

    def scores(self) -> dict[str, NDArray[np.float64]]:
        """Group -> (channels,) scores of the gates, higher is kept."""
        with torch.no_grad():
            found = self.gates.scores(self.model)
        return {name: score.double().cpu().numpy() for name, score in found.items()}

    def open_widths(self) -> tuple[int, ...]:
        """Open gates per group."""
        self.refresh()
        return tuple(int(gate.sum()) for gate in self._current.values())

    def health(self) -> dict[str, float]:
        """Share of gates in the surrogate's live window, and of gates that flipped since last."""
        scores = np.concatenate(list(self.scores().values()))
        before, self._before = self._before, scores >= 0
        flicker = 0.0 if before is None else float((before != self._before).mean())
        return {
            "live": float((np.abs(scores) < 0.5).mean()),
            "open": float((scores >= 0).mean()),
            "flicker": flicker,
        }

    def _optimizer(self, pace: float) -> torch.optim.Optimizer:
        settings, gate_lr = self.settings, self.settings.gate_lr * pace
        # no weight decay: it would pull every score towards the threshold
        steady = {"weight_decay": 0.0, "scheduled": False}
        weights, biases = [], []
        for gate in self.gates.each():
            weights += [layer.weight for layer in gate.layers()]
            # every channel's gradient adds up in a bias: at the full rate a group closes as one,
            # before any image could say which of its channels should stay
            lr = gate_lr / gate.channels
            biases += [{"params": [x.bias for x in gate.layers()], "lr": lr, **steady}]
        return sgd(
            [
                *decayed(self.model, settings.weight_lr, settings.weight_decay),
                {"params": weights, "lr": gate_lr, **steady},
                *biases,
            ]
        )
