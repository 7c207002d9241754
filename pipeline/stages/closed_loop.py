"""The closed loop of prune: solve under the LPNet, build and measure, refit where it was wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from calibration.errors import CandidateLostError
from calibration.lpnet import fit_lpnet, fit_once
from calibration.measure import measure_all
from calibration.sampling import near
from calibration.several import Range
from calibration.widths import Plan, WidthVector
from pipeline.budget import Budget, advice
from pipeline.errors import BudgetUnreachableError
from pipeline.options import PruneOptions
from pipeline.pruning.select import Cost, narrowest
from pipeline.stages.rounds import SAFE, Aim, Round
from pipeline.stages.solving import Solving

NEAR_POINTS = 16  # measured around a plan that missed
ATTEMPTS = 5  # selections measured in a round before the LPNet is refitted
BEFORE = 0  # the round of plans that are measured before any training, none of which is taken yet
FIRST_PLANS = 3  # at most, measured before others are chosen that are measured before any training
# a plan gives accuracy away that is faster than this share of the budget, and than this of the aim:
# 3 %, less the half percent by which two measurements of one plan differ
WASTEFUL, AIMED = 0.975, 0.99


@dataclass(frozen=True)
class Limit:
    """The budget as the closed loop uses it: p50 milliseconds.

    Of a share of the dense network's latency, those that calibrate measured stand for it: plans are
    compared with the dense network. Milliseconds are those that plans take while they are timed.
    """

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
                f"the budget {budget} ({budget_ms:.3f} ms) is below the floor: the fastest "
                f"network that calibrate measured takes {floor_ms * tail:.3f} ms "
                f"({calibration['floor']['ratio']:.2f}x of dense)",
                fix=advice(calibration["floor"]["ratio"]),
            )
        return cls(budget, budget_ms, budget_ms / tail)

    @property
    def is_absolute(self) -> bool:
        """Whether milliseconds are asked for, not a share of what the dense network takes."""
        return self.budget.unit == "ms"

    def least_ms(self, margin: float) -> float:
        """What a plan must take at least that is to lie the `margin` below the budget."""
        return self.p50_ms * min(WASTEFUL, AIMED * (1 - margin))

    def to_json(self) -> dict[str, Any]:
        return {"budget": str(self.budget), "budget_ms": self.budget_ms}


class ClosedLoop:
    """Solve under the LPNet, build and measure at once, refit where it was wrong, solve again."""

    def __init__(self, solving: Solving, limit: Limit) -> None:
        self.solving, self.limit = solving, limit
        margin = solving.options.margin
        self.aim_ms, self.least_ms = limit.p50_ms * (1 - margin), limit.least_ms(margin)
        self.lpnet = solving.lpnet
        # the dense network; under a budget in milliseconds the first plan tells
        self.dense_ms = None if limit.is_absolute else float(self.lpnet.get_buffer("anchor_ms"))
        self.bias = 1.0  # what plans near the budget take, over what the LPNet predicts

    @property
    def predicted_aim_ms(self) -> float:
        """What the LPNet is to predict for a plan that then takes the aim."""
        return self.aim_ms / self.bias

    def run(self) -> list[Round]:
        """BudgetUnreachableError before any training if --min-width leaves no plan that fits."""
        self._require_reachable()
        found: list[Round] = []
        # a plan that was given stays the same
        rounds = 1 if self.solving.options.plan else self.solving.options.rounds
        if self.solving.asks_plans:
            self.bias = self.solving.context.remembered("bias.json", self._found_bias)["bias"]
        for number in range(1, rounds + 1):
            predicted = self.lpnet.predict_ms
            self.solving.learn(number, self._smooth, predicted, self.predicted_aim_ms, self._fits)
            found += self._attempt(number)
            if any(item.met for item in found):
                break
            if number < rounds:
                self._refit(found[-1].plan.widths(), number)
                self.bias = self._pace()
        return found

    def _found_bias(self) -> dict[str, float]:
        """What corrects the aim before plans are chosen for it that are measured before training.

        The LPNet learned from networks that shared a process with the dense one, and plans have
        processes of their own: all of them may be too fast alike, so that none fits.
        """
        bias = 1.0
        for attempt in range(1, FIRST_PLANS + 1):
            plan = self.solving.propose(self.lpnet.predict_ms, self.aim_ms / bias)
            try:
                found = self._measure(BEFORE, attempt, plan, bias)
            except CandidateLostError:  # others may not be
                break
            self._tell(found)
            if found.fits(self.least_ms):
                break
            bias *= found.measured_ms / found.predicted_ms
        return {"bias": bias}

    def _require_reachable(self) -> None:
        options, skeleton = self.solving.options, self.solving.skeleton
        if not options.min_width:  # calibration measured the floor
            return
        multiple = self.solving.target.channel_multiple
        least = skeleton.groups.bare(narrowest(skeleton.groups, multiple, options.min_width))
        kept = torch.tensor([least.kept], dtype=torch.float32)
        low, _ = self.lpnet.interval_ms(kept)
        if float(low) > self.limit.p50_ms:
            raise BudgetUnreachableError(
                f"with --min-width {options.min_width:g} the narrowest network is predicted to "
                f"take {self.lpnet.predict_one_ms(least):.3f} ms, the median must be "
                f"{self.limit.p50_ms:.3f} ms",
                fix="lower --min-width, or ask for a larger budget",
            )

    def _smooth(self) -> Cost:
        """An LPNet without block rounding, for gates to learn under.

        With steps, nothing that a gate does shows until the last channel of its block closes.
        """
        solving, fingerprint = self.solving, self.solving.target.fingerprint()
        smooth = fit_once(solving.records(), solving.skeleton, fingerprint, block=1)
        return smooth.to(solving.fabric.device).predict_ms

    def _attempt(self, number: int) -> list[Round]:
        """Select and measure, correcting the aim by what the LPNet got wrong, until it fits.

        The selection favours plans that the LPNet flatters, so the first one tends to be slower
        than predicted, and leaves room for that: once it is met, the round has a plan, and the next
        ones make use of the room. A measurement costs seconds, an epoch of gates far more.
        """
        found: list[Round] = []
        aim, bias = Aim(self._cautious_ms() / self.bias), self.bias
        for attempt in range(1, ATTEMPTS + 1):
            aim, plan = self._new_plan(aim, found)
            if plan is None:
                break
            found.append(self._measure(number, attempt, plan, bias))
            self._tell(found[-1])
            if found[-1].fits(self.least_ms):
                break
            bias *= found[-1].measured_ms / found[-1].predicted_ms
            aim = aim.after(found[-1], min(self.aim_ms, found[-1].most_ms) / bias)
        return found

    def _new_plan(self, aim: Aim, found: list[Round]) -> tuple[Aim, Plan | None]:
        """The aim's plan; where that was measured, one between plans that were, if there is one.

        Channels come in blocks, so that a few percent of latency may have no plan that is worth
        most for any aim: then the best that lies there.
        """
        while True:
            plan = self.solving.propose(self.lpnet.predict_ms, aim.ms)
            known = next((item for item in found if item.plan == plan), None)
            if known is None:
                return aim, plan
            closer = aim.beside(known)
            if closer is None:
                return self._unmeasured(aim, found)
            aim = closer

    def _unmeasured(self, aim: Aim, found: list[Round]) -> tuple[Aim, Plan | None]:
        """A plan that fits, if the LPNet errs about it as about the nearest safe one."""
        safe = [item for item in found if item.safe]
        if not safe:
            return aim, None
        nearest = max(safe, key=lambda item: item.measured_ms)
        bias = nearest.measured_ms / self.lpnet.predict_one_ms(nearest.plan.widths())
        aim = replace(aim, ms=min(self.aim_ms, nearest.most_ms) / bias)
        known = {item.plan.widths() for item in found}
        plan = self.solving.propose(
            self.lpnet.predict_ms, aim.ms, known=known, least=self.least_ms / bias
        )
        return aim, None if plan.widths() in known else plan

    def _cautious_ms(self) -> float:
        """The aim of a plan that meets the budget even where the LPNet errs as it is known to."""
        if self.solving.plan_fits:
            return self.aim_ms
        held_out = self.lpnet.held_out
        assert held_out is not None
        return min(self.aim_ms, self.limit.p50_ms / held_out.spread)

    def _fits(self, plan: Plan) -> bool:
        """Whether the closed loop would take a plan, asked before any training."""
        try:
            return self._measure(BEFORE, 0, plan, bias=1.0).fits(self.least_ms)
        except CandidateLostError:  # others may not be
            return False

    def _measure(self, number: int, attempt: int, plan: Plan, bias: float) -> Round:
        # what is measured before any training only tells what to try
        record = self.solving.measured(plan.widths(), self._between(), insist=number != BEFORE)
        if self.dense_ms is None or self.limit.is_absolute:
            # verify will hold the plan's own milliseconds against the budget, and while calibrate
            # ran, the machine may have been faster or slower
            self.dense_ms = record.candidate_ms / record.ratio
        return Round(
            number,
            attempt,
            plan,
            predicted_ms=bias * self.lpnet.predict_one_ms(plan.widths()),
            ratio=record.ratio,
            ratio_ci95=record.ratio_ci95,
            anchor_ms=self.dense_ms,
            limit_ms=self.limit.p50_ms,
        )

    def _pace(self) -> float:
        """What the dense network takes now, over what it does for the LPNet."""
        anchor_ms = float(self.lpnet.get_buffer("anchor_ms"))
        return (self.dense_ms or anchor_ms) / anchor_ms

    def _between(self) -> Range | None:
        """Ratios of plans that may be taken; None if it is not known what the dense one takes."""
        if self.dense_ms is None:
            return None
        return self.least_ms / self.dense_ms, SAFE * self.limit.p50_ms / self.dense_ms

    def _refit(self, widths: WidthVector, seed: int) -> None:
        solving = self.solving
        multiple, reporter = solving.target.channel_multiple, solving.context.reporter
        measure_all(
            solving.bench,
            solving.database,
            near(widths, solving.skeleton.groups, multiple, NEAR_POINTS, seed=seed),
            on_done=lambda done, total: reporter.progress("measure near the plan", done, total),
        )
        block, fingerprint = solving.target.channel_block, solving.target.fingerprint()
        records = solving.records()
        self.lpnet = fit_lpnet(
            records, solving.skeleton, fingerprint, block=block, options=self.lpnet.options
        )

    def _tell(self, found: Round) -> None:
        context = self.solving.context
        context.run.event("closed loop", **found.to_json())
        context.reporter.say(
            f"round {found.round}.{found.attempt}: predicted {found.predicted_ms:.3f} ms, measured "
            f"{found.measured_ms:.3f} ms ({found.ratio:.3f}x of dense), budget "
            f"{found.limit_ms:.3f} ms: {'met' if found.met else 'missed'}"
        )
