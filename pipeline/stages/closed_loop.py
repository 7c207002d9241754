"""The closed loop of prune: solve under the LPNet, build and measure, refit where it was wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from calibration.candidates import Slicer
from calibration.database import LatencyDatabase
from calibration.lpnet import LPNet, fit_lpnet
from calibration.measure import Bench, measure_all
from calibration.sampling import near
from calibration.widths import Plan, WidthVector
from pipeline.errors import BudgetUnreachableError
from pipeline.evaluation import top1
from pipeline.files import copy_atomically
from pipeline.options import Budget, PrepareOptions, PruneOptions
from pipeline.pruning.gates import masked
from pipeline.pruning.pruner import make_pruner
from pipeline.pruning.select import Selector
from pipeline.pruning.wgates import GateSettings
from pipeline.run import Context
from pipeline.serving import settled_keep_fp32, target_of
from pipeline.stages.calibrate import ANCHOR, DATABASE
from pipeline.stages.common import data_of, dense_model, fabric_of, skeleton_of
from pipeline.stages.precision import Referee
from pipeline.training import Epoch, Recipe, Trainer, decayed, sgd

NEAR_POINTS = 16  # measured around a plan that missed
ATTEMPTS = 4  # selections measured in a round before the LPNet is refitted
WASTEFUL = 0.95  # a plan faster than this share of the budget gives accuracy away


@dataclass(frozen=True)
class Limit:
    """The budget as the closed loop uses it: p50 milliseconds beside the dense anchor."""

    budget: Budget
    budget_ms: float  # of the wished percentile
    p50_ms: float  # what the median must be for that percentile, by the dense engine's tail

    @classmethod
    def of(cls, options: PruneOptions, calibration: Mapping[str, Any]) -> Limit:
        """BudgetUnreachableError if even the floor is slower: nothing is trained in vain."""
        budget = Budget.parse(options.budget)
        anchor_ms, floor_ms = calibration["anchor_ms"], calibration["floor"]["ms"]
        tail = calibration["tail"][options.percentile]
        budget_ms = budget.in_ms(anchor_ms * tail)
        if floor_ms * tail > budget_ms:
            raise BudgetUnreachableError(
                f"the budget {budget} ({budget_ms:.3f} ms) is below the floor: all groups at "
                f"minimum width take {floor_ms * tail:.3f} ms "
                f"({calibration['floor']['ratio']:.2f}x of dense)",
                fix=f"ask for at least {math.ceil(calibration['floor']['ratio'] * 105) / 100:.2f}x",
            )
        return cls(budget, budget_ms, budget_ms / tail)


@dataclass(frozen=True)
class Round:
    """A plan that was built and measured: what was predicted and what came out."""

    round: int
    attempt: int
    plan: Plan
    predicted_ms: float
    ratio: float
    ratio_ci95: tuple[float, float]
    anchor_ms: float
    limit_ms: float

    @property
    def measured_ms(self) -> float:
        return self.ratio * self.anchor_ms

    @property
    def met(self) -> bool:
        return self.ratio_ci95[1] * self.anchor_ms <= self.limit_ms

    @property
    def fits(self) -> bool:
        """Met, and without giving accuracy away by being much faster than asked."""
        return self.met and self.measured_ms >= WASTEFUL * self.limit_ms

    def to_json(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "attempt": self.attempt,
            "predicted_ms": self.predicted_ms,
            "measured_ms": self.measured_ms,
            "ratio": self.ratio,
            "ratio_ci95": list(self.ratio_ci95),
            "met": self.met,
        }


class ClosedLoop:
    """Solve under the LPNet, build and measure at once, refit where it was wrong, solve again."""

    def __init__(self, context: Context, limit: Limit, stack: ExitStack) -> None:
        self.context, self.limit = context, limit
        self.options = context.options(PruneOptions)
        self.skeleton, self.target = skeleton_of(context.run), target_of(context.run)
        self.fabric, self.data = fabric_of(context.run), data_of(context)
        self.lpnet = LPNet.open(context.run.folder / "calibrate", self.skeleton)
        self.history: list[Epoch] = []
        anchor = context.run.read("calibrate", f"{ANCHOR}{self.target.engine_suffix}")
        if not (context.partial / DATABASE).exists():
            copy_atomically(context.run.read("calibrate", DATABASE), context.partial / DATABASE)
        self.database = stack.enter_context(LatencyDatabase(context.partial / DATABASE))
        engine = stack.enter_context(self.target.load(anchor))
        self.bench = Bench(
            self.target,
            Slicer(self.skeleton),
            engine,
            Referee(context, self.target).candidate_batches,
            frozenset(settled_keep_fp32(context.run)),
        )
        self.prepare = context.run.options("prepare", PrepareOptions)
        self.model = dense_model(context)
        self.pruner = make_pruner(
            self.options.method,
            self.model,
            self.skeleton,
            _settings(self.options, self.prepare),
            multiple=self.target.channel_multiple,
        )
        self.solving_epochs = self.pruner.solving_epochs(self.options.gate_epochs)

    def run(self) -> list[Round]:
        rounds: list[Round] = []
        aim_ms = self.limit.p50_ms * (1 - self.options.margin)
        for number in range(1, self.options.rounds + 1):
            self._solve(number, aim_ms)
            rounds += self._attempt(number, aim_ms)
            if any(item.met for item in rounds):
                break
            if number < self.options.rounds:
                self._refit(rounds[-1].plan.widths(), number)
        return rounds

    def _attempt(self, number: int, aim_ms: float) -> list[Round]:
        """Select and measure, correcting the aim by what the LPNet got wrong, until it fits.

        The selection favours plans that the LPNet flatters, so the first one tends to be slower
        than predicted; a measurement costs a fraction of a second, a training step far more.
        """
        found: list[Round] = []
        bias = 1.0
        for attempt in range(1, ATTEMPTS + 1):
            plan = self._select(aim_ms / bias)
            if any(item.plan == plan for item in found):
                break
            found.append(self._measure(number, attempt, plan, bias))
            self._tell(found[-1])
            if found[-1].fits:
                break
            bias *= found[-1].measured_ms / found[-1].predicted_ms
        return found

    def train_on_masks(self, plan: Plan) -> list[Epoch]:
        """The method's remaining epochs: weights only, behind the plan's fixed masks."""
        trainer = self._trainer("masked weights", self.options.gate_epochs - self.solving_epochs)
        self.model.to(self.fabric.device)
        with masked(self.model, self.skeleton.groups, plan):
            return trainer.train(
                self.model,
                sgd(decayed(self.model, self.options.weight_lr, self.prepare.weight_decay)),
                lambda images, labels: cross_entropy(self.model(images), labels),
                evaluate=lambda: top1(self.model, self.data, "val", self.fabric),
            )

    def _solve(self, number: int, aim_ms: float) -> None:
        """Let the method learn; later rounds start where the last one ended and take an epoch."""
        if self.solving_epochs == 0:  # a baseline that needs no training to decide
            return
        label = "gates" if number == 1 else f"gates round {number}"
        trainer = self._trainer(label, self.solving_epochs if number == 1 else 1)
        # gates learn under an LPNet without block rounding: with steps, nothing that a gate does
        # shows until the last channel of its block closes
        self.pruner.solve(trainer, self._fit(block=1), aim_ms, ramp=number == 1)
        self.history += trainer.history

    def _trainer(self, label: str, epochs: int) -> Trainer:
        batch, seed = self.prepare.train_batch, self.prepare.seed
        recipe = Recipe(label, epochs, batch, seed, "lower --weight-lr or --gate-lr")
        reporter = self.context.reporter
        return Trainer(self.fabric, self.data, self.context.partial, reporter, recipe)

    def _select(self, aim_ms: float) -> Plan:
        selector = Selector(self.skeleton, self._predict, self.target.channel_multiple)
        return self.pruner.propose(selector, aim_ms)

    def _predict(self, kept: NDArray[np.float64]) -> NDArray[np.float64]:
        device = self.lpnet.get_buffer("anchor_ms").device
        with torch.no_grad():
            found = self.lpnet.predict_ms(torch.tensor(kept, dtype=torch.float32, device=device))
        return found.double().cpu().numpy()

    def _measure(self, number: int, attempt: int, plan: Plan, bias: float) -> Round:
        """Build the plan's widths and time them; a resumed run reads the result back instead."""
        widths, fingerprint = plan.widths(), self.target.fingerprint()
        measure_all(self.bench, self.database, [widths], precision=0.006)
        records = self.database.records(self.skeleton.sha256, fingerprint)
        record = next(item for item in records if item.widths == widths)
        return Round(
            number,
            attempt,
            plan,
            predicted_ms=bias * self.lpnet.predict_one_ms(widths),
            ratio=record.ratio,
            ratio_ci95=record.ratio_ci95,
            anchor_ms=float(self.lpnet.get_buffer("anchor_ms")),
            limit_ms=self.limit.p50_ms,
        )

    def _refit(self, widths: WidthVector, seed: int) -> None:
        points = near(
            widths, self.skeleton.groups, self.target.channel_multiple, NEAR_POINTS, seed=seed
        )
        measure_all(
            self.bench,
            self.database,
            points,
            on_done=lambda done, total: self.context.reporter.progress(
                "measure near the plan", done, total
            ),
        )
        self.lpnet = self._fit(self.target.channel_block)

    def _fit(self, block: int) -> LPNet:
        fingerprint = self.target.fingerprint()
        records = self.database.records(self.skeleton.sha256, fingerprint)
        return fit_lpnet(records, self.skeleton, fingerprint, block=block)

    def _tell(self, found: Round) -> None:
        self.context.run.event("closed loop", **found.to_json())
        self.context.reporter.say(
            f"round {found.round}.{found.attempt}: predicted {found.predicted_ms:.3f} ms, measured "
            f"{found.measured_ms:.3f} ms ({found.ratio:.3f}x of dense), budget "
            f"{found.limit_ms:.3f} ms: {'met' if found.met else 'missed'}"
        )


def _settings(options: PruneOptions, prepare: PrepareOptions) -> GateSettings:
    return GateSettings(
        gate_lr=options.gate_lr,
        weight_lr=options.weight_lr,
        weight_decay=prepare.weight_decay,
        dual_lr=options.dual_lr,
        surrogate=options.surrogate,
        detach_input=options.detach_gate_input,
    )
