"""What prune needs whatever the budget bounds: the method on the dense model, and a bench."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from calibration.cliffs import snapping, step_maps
from calibration.database import LatencyDatabase, LatencyRecord
from calibration.errors import CandidateLostError
from calibration.isolated import IsolatedBench
from calibration.jobs import Setup
from calibration.lpnet import LPNet
from calibration.measure import measure_all
from calibration.phases import Phases
from calibration.several import PLAN_PRECISION, SeveralProcesses
from calibration.widths import Plan, WidthVector
from pipeline.errors import MissingInputError
from pipeline.evaluation import top1
from pipeline.files import copy_atomically
from pipeline.options import PrepareOptions, PruneOptions
from pipeline.pruning.constraint import Goal
from pipeline.pruning.gates import GateForm
from pipeline.pruning.magnitude import GivenPlan
from pipeline.pruning.masking import masked
from pipeline.pruning.pruner import Pruner, make_pruner
from pipeline.pruning.select import Cost, Selector, priced
from pipeline.pruning.task import TaskLoss, distilled_task, plain_task
from pipeline.pruning.wgates import GateSettings
from pipeline.pruning.worth import Worth
from pipeline.run import Context
from pipeline.serving import settled_keep_fp32, target_of
from pipeline.stages.calibrate import ANCHOR, DATABASE
from pipeline.stages.common import (
    data_of,
    dense_model,
    fabric_of,
    recipe_of,
    skeleton_of,
    trainer_of,
)
from pipeline.stages.group_losses import (
    Fits,
    Subject,
    group_losses,
    wants_losses,
    weighed_together,
)
from pipeline.stages.precision import Referee
from pipeline.stages.watchdog import watchdog_s
from pipeline.training import Course, Epoch, Trainer, decayed, sgd

PLANS = "plans.sqlite"  # what was proposed, measured better than calibration's candidates


class Solving:
    """One method on one dense model, and the engines to time what it proposes."""

    def __init__(self, context: Context, stack: ExitStack) -> None:
        self.context = context
        self.options = context.options(PruneOptions)
        self.skeleton, self.target = skeleton_of(context.run), target_of(context.run)
        self.fabric, self.data = fabric_of(context.run), data_of(context)
        self.lpnet = LPNet.open(context.run.folder / "calibrate", self.skeleton)
        self.history: list[Epoch] = []
        self.anchor = context.run.read("calibrate", f"{ANCHOR}{self.target.engine_suffix}")
        if not (context.partial / DATABASE).exists():
            copy_atomically(context.run.read("calibrate", DATABASE), context.partial / DATABASE)
        self.database = stack.enter_context(LatencyDatabase(context.partial / DATABASE))
        self.plans = stack.enter_context(LatencyDatabase(context.partial / PLANS))
        setup = Setup(
            self.skeleton,
            self.target.name,
            self.target.options,
            self.target.fingerprint(),
            Referee(context, self.target).candidate_batches,
            frozenset(settled_keep_fp32(context.run)),
        )
        bench = IsolatedBench(setup, Phases(), limit_s=watchdog_s(context), anchor=self.anchor)
        self.bench = stack.enter_context(bench)
        self.prepare = context.run.options("prepare", PrepareOptions)
        self.model = dense_model(context)
        self.task = self._task()
        self.pruner = self._pruner()
        self.solving_epochs = self.pruner.solving_epochs(self.options.gate_epochs)
        self._worth: Worth | None = None
        self.plan_fits = False  # whether the plan that it leads to was measured, and is as wished
        if wants_losses(self.options):
            self._worth = self._by_loss()

    def learn(
        self, number: int, smooth: Callable[[], Cost], cost: Cost, aim: float, fits: Fits
    ) -> None:
        """Let the method learn; later rounds start where the last one ended and take an epoch.

        `smooth` makes, on the training's device, what gates can follow of the cost. Before any
        training, the losses of whole plans settle what groups are worth.
        """
        if number == 1 and self._worth is not None and self.options.worth_plans > 1:
            self._worth, self.plan_fits = weighed_together(self._subject(cost), aim, fits)
        if self.solving_epochs == 0:  # a baseline that needs no training to decide
            return
        label = "gates" if number == 1 else f"gates round {number}"
        trainer = self._trainer(label, self.solving_epochs if number == 1 else 1)
        goal = Goal(smooth, self._selector(cost), aim)
        self.pruner.solve(trainer, goal, ramp=number == 1)
        self.history += trainer.history

    def propose(
        self, cost: Cost, aim: float, *, known: Collection[WidthVector] = (), least: float = 0.0
    ) -> Plan:
        """The method's plan for `aim`, as the cost, on the CPU, has it.

        None of those `known`, if the method has another that costs between `least` and `aim`.
        """
        selector = replace(self._selector(cost), known=known, least=least)
        return self.pruner.propose(selector, aim)

    def _selector(self, cost: Cost) -> Selector:
        multiple = self.target.channel_multiple
        steps, least = self._steps(), self.options.min_width
        return Selector(self.skeleton, priced(cost), multiple, steps, least, self._worth)

    def _by_loss(self) -> Worth:
        """Of the model as it is before any training of its gates."""
        subject = self._subject(self.lpnet.predict_ms)
        return group_losses(subject).worth(self.skeleton.groups, subject.scores)

    def _subject(self, cost: Cost) -> Subject:
        return Subject(self.context, self.model, self._selector(cost), self.pruner.scores())

    def _steps(self) -> Mapping[str, int]:
        """Measured width steps, by group; none where the budget counts every channel."""
        if self.options.objective != "latency":
            return {}
        return snapping(step_maps(self.skeleton.groups, self.records()))

    def measured(
        self, widths: WidthVector, between: tuple[float, float] = (0.0, math.inf)
    ) -> LatencyRecord:
        """Build the widths and time them as verify does; a resumed run reads it back.

        Ratios that surely do not lie `between` these two need not be known well.
        """
        sha256, fingerprint = self.skeleton.sha256, self.target.fingerprint()
        several = SeveralProcesses(self.bench, self.anchor, self._timed, between)
        measure_all(several, self.plans, [widths], precision=PLAN_PRECISION)
        proposed = self.plans.records(sha256, fingerprint)
        found = [record for record in proposed if record.widths == widths]
        if not found:
            lost = self.plans.lost(sha256, fingerprint)
            raise CandidateLostError(
                f"the network of the plan cannot be measured: it {lost[widths]}",
                fix="try another --margin or --min-width, so that another plan is taken",
            )
        return found[0]

    def _timed(self, processes: int, most: int) -> None:
        self.context.reporter.progress("fresh processes that time the plan", processes, most)

    def records(self) -> tuple[LatencyRecord, ...]:
        """All that is measured of this network on this target, each width vector once."""
        which = self.skeleton.sha256, self.target.fingerprint()
        measured = (*self.database.records(*which), *self.plans.records(*which))
        return tuple({record.widths: record for record in measured}.values())

    def train_on_masks(self, plan: Plan) -> list[Epoch]:
        """The method's remaining epochs: weights only, behind the plan's fixed masks."""
        trainer = self._trainer("masked weights", self.options.gate_epochs - self.solving_epochs)
        course: Course = "steady" if self.history else "holds"
        weights = decayed(self.model, self.options.weight_lr, self.prepare.weight_decay, course)
        self.model.to(self.fabric.device)
        with masked(self.model, self.skeleton.groups, plan):
            return trainer.train(
                self.model,
                sgd(weights),
                lambda images, labels: self.task(images, self.model(images), labels),
                evaluate=lambda: top1(self.model, self.data, "val", self.fabric),
            )

    def _pruner(self) -> Pruner:
        if self.options.plan is not None:
            return GivenPlan(self.model, self.skeleton, read_plan(self.options.plan))
        return make_pruner(
            self.options.method,
            self.model,
            self.skeleton,
            _settings(self.options, self.prepare, self._steps()),
            multiple=self.target.channel_multiple,
            task=self.task,
        )

    def _task(self) -> TaskLoss:
        weight = self.options.gate_distill
        if weight == 0:
            return plain_task
        return distilled_task(dense_model(self.context).to(self.fabric.device), weight)

    def _trainer(self, label: str, epochs: int) -> Trainer:
        fix = "lower --weight-lr or --gate-lr"
        recipe = recipe_of(self.context, self.model, label, epochs, fix)
        # averaged weights would open and close other gates than those that were trained
        plain = replace(recipe, regime=replace(recipe.regime, ema=0.0))
        return trainer_of(self.context, plain)


def read_plan(path: Path) -> Plan:
    """A plan that was decided elsewhere; MissingInputError or GroupsError if it is none."""
    again = "give a plan.json that `pipeline prune` wrote for this network"
    try:
        return Plan.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, RecursionError, ValueError) as error:
        raise MissingInputError(f"--plan {path}: {error}", fix=again) from error


def _settings(
    options: PruneOptions, prepare: PrepareOptions, steps: Mapping[str, int]
) -> GateSettings:
    return GateSettings(
        gate_lr=options.gate_lr,
        weight_lr=options.weight_lr,
        weight_decay=prepare.weight_decay,
        dual_lr=options.dual_lr,
        form=GateForm(
            surrogate=options.surrogate,
            start=options.gate_start,
            detach_input=options.detach_gate_input,
            steps=steps if options.snap_gates else {},
        ),
        mode=options.budget_mode,
        alpha=options.alpha,
        live_share=options.live_share,
        ramp_share=options.ramp_share,
        min_width=options.min_width,
    )
