"""W-Gates training: weights, gates and widths together under a cost: latency, MACs or parameters.

Gates are held on plans that fit the budget, which their scores decide (`projection`); or loss =
task + price * (cost / aim - 1), the price by dual ascent, so that the budget is reached rather than
traded against (methods: adapter A2); or task + alpha * log(1 + cost / dense cost), the paper's own
form (A1).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibration.skeleton import Skeleton
from calibration.widths import Plan
from pipeline.evaluation import Top1, top1
from pipeline.pruning.constraint import Aim, Bound, CostTerm, Goal, Penalty
from pipeline.pruning.emptied import ajar, any_open
from pipeline.pruning.gates import FilterGates, GateForm, widths_of
from pipeline.pruning.led import Led
from pipeline.pruning.masking import gated
from pipeline.pruning.projection import Projection
from pipeline.pruning.select import Selector, narrowest
from pipeline.pruning.task import TaskLoss, plain_task
from pipeline.pruning.worth import Scores
from pipeline.training import Trainer, decayed, sgd

BudgetMode = Literal["projection", "bound", "penalty"]

# `gate_lr` and `dual_lr` are meant for this many gated steps and shrink with more: gates and price
# then take the same path over the training, however long it is, with less noise on the way
LIVE_STEPS = 100
GATES = 500  # ... and `gate_lr` for this many gates: of more, each has a smaller share in the loss
# of the price at --gate-lr 1: the widths follow the aim within a few hundredths of the training
GAIN = 30.0
LEAST_REGARD = 0.1  # of a group whose gates all closed
GAINS = 0.02  # while weights learn, a plan gives way only to one that is worth clearly more


@dataclass(frozen=True)
class GateSettings:
    """How gates are trained."""

    gate_lr: float
    weight_lr: float
    weight_decay: float
    dual_lr: float
    form: GateForm = GateForm()  # noqa: RUF009  a frozen value
    mode: BudgetMode = "projection"
    alpha: float = 1.0  # of the penalty
    live_share: float = 2 / 3  # of the gate epochs; later gates only flicker, so masks are fixed
    ramp_share: float = 0.6  # of the gated steps; the aim falls to the budget over them
    min_width: float = 0.0  # least share of a group's channels


class WGates:
    """A dense model with its gates in place."""

    def __init__(
        self,
        model: nn.Module,
        skeleton: Skeleton,
        settings: GateSettings,
        *,
        multiple: int,
        task: TaskLoss = plain_task,
    ) -> None:
        self.model, self.skeleton, self.settings = model, skeleton, settings
        self.task = task
        groups = skeleton.groups
        least = narrowest(groups, multiple, settings.min_width)
        floors = dict(zip(least.groups, least.kept, strict=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            held = settings.mode == "projection"
            self.gates = FilterGates(groups, model, floors, settings.form, held=held)
        self.trained = nn.ModuleDict({"model": model, "gates": self.gates})
        self._current: Mapping[str, Tensor] = {}
        self._switches: Mapping[str, Tensor] = {}
        self._before: NDArray[np.bool_] | None = None

    def solving_epochs(self, epochs: int) -> int:
        return min(epochs, max(1, round(epochs * self.settings.live_share)))

    def solve(self, trainer: Trainer, goal: Goal | None, *, ramp: bool = True) -> None:
        """Gated training for the trainer's epochs; the multiplier survives a resume.

        With `ramp` the aim may fall from the dense network's cost to the goal's. Of several
        processes the first one's goal holds.
        """
        total = max(1, trainer.recipe.epochs * trainer.steps_per_epoch)
        self.trained.to(trainer.fabric.device)
        led = Led(self._quick(goal), trainer.fabric)
        term = self._term(led, total, self.settings.ramp_share if ramp else 0.0)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            term.multiplier = trainer.state.get("multiplier", term.multiplier)
            share = trainer.state.get("steps", 0.0) / total
            widths = self._look()
            task = self.task(images, self.model(images), labels)
            return task + term.loss(widths, share)

        def on_step() -> None:
            trainer.state["steps"] = trainer.state.get("steps", 0.0) + 1
            term.ascend(trainer.state["steps"] / total)
            trainer.state["multiplier"] = term.multiplier

        def evaluate() -> Top1:
            self.refresh()
            if math.isnan(term.predicted):  # resumed after the epoch's last step
                term.loss(self._look(), 1.0)
            trainer.state |= {"predicted": term.predicted, **self.health()}
            return top1(self.model, trainer.data, "val", trainer.fabric)

        optimizer = self._optimizer(_pace(total))
        with self.in_place():
            trainer.train(self.trained, optimizer, loss, evaluate=evaluate, on_step=on_step)
        self.refresh()

    def propose(self, selector: Selector, aim: float) -> Plan:
        opened = self.open_widths()
        regard = None if self.gates.held else self._regard(opened)
        return selector.choose(self.scores(), opened, aim, regard)

    def _regard(self, opened: Sequence[int]) -> dict[str, float]:
        """What a channel of each group is worth beside those of others: its open share.

        Task and price have settled it: where gates closed, the task did not hold them open. On a
        plan nothing is settled so: only closed groups can be missed, and those that were never
        tried would look worthless beside them.
        """
        groups = self.skeleton.groups.prunable
        return {
            group.name: max(LEAST_REGARD, count / group.channels)
            for group, count in zip(groups, opened, strict=True)
        }

    def _hold(self, led: Led, aim: float) -> float:
        """Put the gates on the plan worth most near the one they are on; what it costs."""

        def found(goal: Goal) -> list[float]:
            kept = self.propose(goal.selector, aim).widths().kept
            return [_price(goal.selector, kept), *kept]

        price, *kept = led.numbers(found, 1 + len(self.gates.names))
        self.gates.hold([int(count) for count in kept])
        return price

    def refresh(self) -> None:
        """Recompute the gates from the weights as they are now."""
        with torch.no_grad():
            self._look()

    def _look(self) -> Tensor:
        """Gates of the weights as they are; (1, G) open ones, differentiable."""
        scores = self.gates.scores(self.model)
        gates = self.gates.of(scores)
        branches = self.skeleton.groups.branches
        self._switches = {branch.name: any_open(gates, branch) for branch in branches}
        self._current = ajar(self.gates.filled(gates, scores), self._switches, branches)
        return widths_of(gates)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block, the model computes behind its gates."""
        groups = self.skeleton.groups
        with gated(self.model, groups, lambda: self._current, lambda: self._switches):
            yield

    def scores(self) -> Scores:
        with torch.no_grad():
            found = self.gates.scores(self.model)
        return {name: score.double().cpu().numpy() for name, score in found.items()}

    def open_widths(self) -> tuple[int, ...]:
        """Open gates per group."""
        with torch.no_grad():
            return tuple(int(width) for width in self._look()[0])

    def health(self) -> dict[str, float]:
        """Share of gates in the surrogate's live window, and of gates that flipped since last."""
        with torch.no_grad():
            found = self.gates.centred(self.gates.scores(self.model))
        scores = torch.cat(list(found.values())).cpu().numpy()
        before, self._before = self._before, scores >= 0
        flicker = 0.0 if before is None else float((before != self._before).mean())
        return {
            "live": float((np.abs(scores) < 0.5).mean()),
            "open": float((scores >= 0).mean()),
            "flicker": flicker,
        }

    @staticmethod
    def _quick(goal: Goal | None) -> Goal | None:
        """With a shorter search, which is made again and again."""
        if goal is None:
            return None
        return replace(goal, selector=replace(goal.selector, exchanges=1, gains=GAINS))

    def _term(self, led: Led, steps: int, falls: float) -> CostTerm:
        settings, full = self.settings, self.skeleton.groups.full().kept
        [aim] = led.numbers(lambda goal: [goal.aim], 1)
        if settings.mode == "projection":
            [dense] = led.numbers(lambda goal: [_price(goal.selector, full)], 1)
            hold = functools.partial(self._hold, led)
            return Projection(hold, Aim(dense, aim, falls), steps=steps)
        cost = led.smooth()
        dense = float(cost(torch.tensor([full], dtype=torch.float32, device=led.fabric.device)))
        if settings.mode == "penalty":
            return Penalty(cost, settings.alpha, dense=dense)
        gain, dual_step = GAIN / max(settings.gate_lr, 1e-12), settings.dual_lr * _pace(steps)
        return Bound(cost, Aim(dense, aim, falls), gain=gain, dual_step=dual_step)

    def _optimizer(self, pace: float) -> torch.optim.Optimizer:
        settings = self.settings
        gate_lr = settings.gate_lr * pace * sum(gate.channels for gate in self.gates.each()) / GATES
        # no momentum: the price would act late and swing; no weight decay: it would pull every
        # score towards the threshold. On plans no price pushes that gates would have to follow to
        # the end: they settle, where at a steady rate a few percent of them would change places
        # with every step, and weights never learn for the channels that stay. The weights' rate
        # holds: fine-tuning goes on from there, and lets it fall
        plain = {
            "weight_decay": 0.0,
            "course": "falls" if settings.mode == "projection" else "steady",
            "momentum": 0.0,
            "nesterov": False,
        }
        weights, biases = [], []
        for gate in self.gates.each():
            weights += [layer.weight for layer in gate.layers()]
            # every channel's gradient adds up in a bias: at the full rate a group closes as one,
            # before any image could say which of its channels should stay
            lr = gate_lr / gate.channels
            biases += [{"params": [x.bias for x in gate.layers()], "lr": lr, **plain}]
        return sgd(
            [
                *decayed(self.model, settings.weight_lr, settings.weight_decay, "holds"),
                {"params": weights, "lr": gate_lr, **plain},
                *biases,
            ]
        )


def _pace(steps: int) -> float:
    """Of gates and price, in a training of so many steps."""
    return min(1.0, LIVE_STEPS / steps)


def _price(selector: Selector, kept: Sequence[int]) -> float:
    return float(selector.price(np.array([kept], float))[0])
