"""What prune needs whatever the budget bounds: the method on the dense model, and a bench."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace

from calibration.cliffs import snapping, step_maps
from calibration.database import LatencyDatabase, LatencyRecord
from calibration.errors import CandidateLostError
from calibration.isolated import IsolatedBench
from calibration.jobs import Setup
from calibration.lpnet import LPNet
from calibration.phases import Phases
from calibration.proposed import Proposed
from calibration.several import Range
from calibration.widths import Plan, WidthVector
from pipeline.files import copy_atomically
from pipeline.options import PruneOptions
from pipeline.pruning.constraint import Goal
from pipeline.pruning.select import Cost, Selector, priced
from pipeline.pruning.worth import Worth
from pipeline.run import Context
from pipeline.serving import settled_keep_fp32, target_of
from pipeline.stages.calibrate import ANCHOR, DATABASE
from pipeline.stages.common import fabric_of, skeleton_of
from pipeline.stages.group_losses import (
    Fits,
    Subject,
    group_losses,
    wants_losses,
    weighed_together,
)
from pipeline.stages.learner import Learner
from pipeline.stages.precision import Referee
from pipeline.stages.watchdog import watchdog_s

# what was proposed, measured better than calibration's candidates; and what may be taken, again
PLANS, PLANS_LATER = "plans.sqlite", "plans-later.sqlite"


class Solving:
    """One method on one dense model, and the engines to time what it proposes."""

    def __init__(self, context: Context, stack: ExitStack) -> None:
        self.context = context
        self.options = context.options(PruneOptions)
        self.skeleton, self.target = skeleton_of(context.run), target_of(context.run)
        self.fabric = fabric_of(context.run)
        self.lpnet = LPNet.open(context.run.folder / "calibrate", self.skeleton)
        self.anchor = context.run.read("calibrate", f"{ANCHOR}{self.target.engine_suffix}")
        if not (context.partial / DATABASE).exists():
            copy_atomically(context.run.read("calibrate", DATABASE), context.partial / DATABASE)
        self.database = stack.enter_context(LatencyDatabase(context.partial / DATABASE))
        first = stack.enter_context(LatencyDatabase(context.partial / PLANS))
        later = stack.enter_context(LatencyDatabase(context.partial / PLANS_LATER))
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
        self.proposed = Proposed(self.bench, self.anchor, first, later, self._timed)
        self.learner = Learner(context, self._steps())
        self._worth: Worth | None = None
        self.plan_fits = False  # whether the plan that it leads to was measured, and is as wished
        if wants_losses(self.options):
            self._worth = self._by_loss()

    @property
    def asks_plans(self) -> bool:
        """Whether plans are measured before any training, to find what groups are worth."""
        return self._worth is not None and self.options.worth_plans > 1

    def learn(
        self, number: int, smooth: Callable[[], Cost], cost: Cost, aim: float, fits: Fits
    ) -> None:
        """Let the method learn for a round of the closed loop.

        `smooth` makes, on the training's device, what gates can follow of the cost. Before any
        training, the losses of whole plans settle what groups are worth.
        """
        if number == 1 and self.asks_plans:
            self._worth, self.plan_fits = weighed_together(self._subject(cost), aim, fits)
        self.learner.solve(number, Goal(smooth, self._selector(cost), aim))

    def propose(
        self, cost: Cost, aim: float, *, known: Collection[WidthVector] = (), least: float = 0.0
    ) -> Plan:
        """The method's plan for `aim`, as the cost, on the CPU, has it.

        None of those `known`, if the method has another that costs between `least` and `aim`.
        """
        selector = replace(self._selector(cost), known=known, least=least)
        return self.learner.pruner.propose(selector, aim)

    def _selector(self, cost: Cost) -> Selector:
        multiple = self.target.channel_multiple
        steps, least = self._steps(), self.options.min_width
        return Selector(self.skeleton, priced(cost), multiple, steps, least, self._worth)

    def _by_loss(self) -> Worth:
        """Of the model as it is before any training of its gates."""
        subject = self._subject(self.lpnet.predict_ms)
        return group_losses(subject).worth(self.skeleton.groups, subject.scores)

    def _subject(self, cost: Cost) -> Subject:
        return Subject(
            self.context, self.learner.model, self._selector(cost), self.learner.pruner.scores()
        )

    def _steps(self) -> Mapping[str, int]:
        """Measured width steps, by group; none where the budget counts every channel."""
        if self.options.objective != "latency":
            return {}
        return snapping(step_maps(self.skeleton.groups, self.records()))

    def measured(
        self, widths: WidthVector, between: Range | None = None, *, insist: bool = False
    ) -> LatencyRecord:
        """Build the widths and time them as verify does; a resumed run reads it back.

        As `Proposed.record` does; what is still in doubt is told.
        """
        try:
            found = self.proposed.record(widths, between, insist=insist)
        except CandidateLostError as error:
            raise CandidateLostError(
                f"the network of the plan cannot be measured: it {error.message}",
                fix="try another --margin or --min-width, so that another plan is taken",
            ) from error
        if self.proposed.in_doubt(widths, between):
            off = math.expm1(self.proposed.known()[widths].off)
            self.context.reporter.say(
                f"others slowed the machine while a plan of {found.ratio:.3f}x was timed: "
                f"that may be {off:.0%} off"
            )
        return found

    def _timed(self, processes: int, most: int) -> None:
        self.context.reporter.progress("fresh processes that time the plan", processes, most)

    def records(self) -> tuple[LatencyRecord, ...]:
        """All that is measured of this network on this target, each width vector once."""
        candidates = self.database.records(self.skeleton.sha256, self.target.fingerprint())
        plans = (known.record for known in self.proposed.known().values())
        return tuple({record.widths: record for record in (*candidates, *plans)}.values())
