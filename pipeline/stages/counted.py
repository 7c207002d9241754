"""prune under a count of MACs or parameters: solved once, met exactly, measured to be reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from calibration.counts import Count
from calibration.skeleton import Skeleton
from pipeline.budget import Budget, Objective, advice
from pipeline.errors import BudgetMissedError, BudgetUnreachableError
from pipeline.options import PruneOptions
from pipeline.pruning.select import narrowest
from pipeline.stages.rounds import Round
from pipeline.stages.solving import Solving

COUNTS: dict[Objective, tuple[str, Callable[[Skeleton], Count]]] = {
    "flops": ("multiply-adds", Count.macs),
    "params": ("parameters", Count.parameters),
}


@dataclass(frozen=True)
class CountLimit:
    """The budget as a whole number of multiply-adds or parameters."""

    budget: Budget
    most: int
    dense: int
    name: str  # of what is counted
    count: Count

    @classmethod
    def of(cls, options: PruneOptions, skeleton: Skeleton, multiple: int) -> Self:
        """BudgetUnreachableError if even the narrowest widths have more."""
        name, make_count = COUNTS[options.objective]
        count, budget = make_count(skeleton), Budget.parse(options.budget)
        dense = count.at(skeleton.groups.full())
        least = skeleton.groups.bare(narrowest(skeleton.groups, multiple, options.min_width))
        floor, most = count.at(least), budget.as_count(dense)
        if floor > most:
            raise BudgetUnreachableError(
                f"the budget {budget} ({most:,} {name}) is below the floor: all groups at minimum "
                f"width have {floor:,} ({floor / dense:.2f}x of dense)",
                fix=advice(floor / dense, room=1.0),
            )
        return cls(budget, most, dense, name, count)

    def to_json(self) -> dict[str, Any]:
        return {"budget": str(self.budget), "budget_count": self.most}


def solve_counted(solving: Solving, limit: CountLimit) -> Round:
    """The plan whose count fits, checked exactly; its latency is measured to be known."""
    solving.learn(1, lambda: limit.count, limit.count, limit.most, fits=lambda plan: True)
    plan = solving.propose(limit.count, limit.most)
    found = limit.count.at(plan.widths())
    if found > limit.most:
        raise BudgetMissedError(
            f"the plan has {found:,} {limit.name}, the budget is {limit.most:,}",
            fix=f"choose another {'--plan' if solving.options.plan else '--method'}, or ask for a "
            "larger --budget",
        )
    record = solving.measured(plan.widths())
    chosen = Round(
        1,
        1,
        plan,
        predicted_ms=solving.lpnet.predict_one_ms(plan.widths()),
        ratio=record.ratio,
        ratio_ci95=record.ratio_ci95,
        anchor_ms=float(solving.lpnet.get_buffer("anchor_ms")),
        limit_ms=None,
    )
    solving.context.run.event("counted", count=found, **chosen.to_json())
    solving.context.reporter.say(
        f"plan: {found:,} {limit.name} ({found / limit.dense:.3f}x of dense), budget "
        f"{limit.most:,}; measured {chosen.measured_ms:.3f} ms ({chosen.ratio:.3f}x of dense)"
    )
    return chosen
