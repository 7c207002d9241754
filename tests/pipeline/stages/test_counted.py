"""Budgets that are counts: the limit, and the one exact check in place of measured rounds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from calibration.cost import NetworkCost, parameter_count
from calibration.database import LatencyRecord
from calibration.widths import Plan, WidthVector
from pipeline.errors import BudgetMissedError, BudgetUnreachableError
from pipeline.options import PruneOptions, Share
from pipeline.stages.counted import CountLimit, solve_counted
from pipeline.stages.solving import Solving

from ...calibration.chain import chain

SKELETON = chain((32, 48, 64))
GROUPS = SKELETON.groups
FULL, FLOOR = GROUPS.full(), GROUPS.floor(8)
MACS = NetworkCost.of(SKELETON)


def limit_of(objective: Any, budget: str) -> CountLimit:
    return CountLimit.of(PruneOptions(objective=objective, budget=budget), SKELETON, 8)


def test_limit_is_a_share_of_the_dense_count() -> None:
    limit = limit_of("flops", "0.5x")
    assert (limit.dense, limit.most) == (MACS.macs(FULL), MACS.macs(FULL) // 2)
    assert limit.to_json() == {"budget": "0.5x", "budget_count": limit.most}
    limit = limit_of("params", "0.5x")
    assert limit.dense == parameter_count(SKELETON, FULL)
    assert limit_of("params", "20k").most == 20_000


@pytest.mark.parametrize(
    ("objective", "name", "floor", "dense"),
    [
        ("flops", "multiply-adds", MACS.macs(FLOOR), MACS.macs(FULL)),
        (
            "params",
            "parameters",
            parameter_count(SKELETON, FLOOR),
            parameter_count(SKELETON, FULL),
        ),
    ],
)
def test_budget_below_the_floor(objective: str, name: str, floor: int, dense: int) -> None:
    with pytest.raises(BudgetUnreachableError) as caught:
        limit_of(objective, f"{(floor - 1) / 1000:f}k")
    assert f"({floor - 1:,} {name}) is below the floor" in caught.value.message
    assert f"have {floor:,} ({floor / dense:.2f}x of dense)" in caught.value.message
    asked = str(caught.value.fix).rpartition(" ")[2]
    assert limit_of(objective, asked).most >= floor
    assert limit_of(objective, f"{floor / 1000:f}k").most == floor


def test_a_least_width_raises_the_floor() -> None:
    options = PruneOptions(objective="flops", budget="0.5x", min_width=Share(0.8))
    with pytest.raises(BudgetUnreachableError, match="is below the floor"):
        CountLimit.of(options, SKELETON, 8)


class Bench:
    """A `Solving` whose method proposes one plan, and whose runtime is known."""

    def __init__(self, kept: tuple[int, ...]) -> None:
        self.plan = GROUPS.first_channels(WidthVector(GROUPS.names, kept), SKELETON.sha256)
        self.lpnet = SimpleNamespace(
            predict_one_ms=lambda widths: 5.5, get_buffer=lambda name: torch.tensor(10.0)
        )
        self.options = PruneOptions()
        self.events: list[dict[str, Any]] = []
        self.said: list[str] = []
        run = SimpleNamespace(event=lambda kind, **values: self.events.append(values))
        self.context = SimpleNamespace(run=run, reporter=SimpleNamespace(say=self.said.append))
        self.learned: list[tuple[int, Any, float]] = []
        self.timed: list[WidthVector] = []

    def learn(self, number: int, smooth: Any, cost: Any, aim: float, fits: Any) -> None:
        self.learned.append((number, cost, aim))

    def propose(self, cost: Any, aim: float) -> Plan:
        assert (cost, aim) == self.learned[-1][1:]
        return self.plan

    def measured(self, widths: WidthVector) -> LatencyRecord:
        self.timed.append(widths)
        found = SimpleNamespace(widths=widths, ratio=0.6, ratio_ci95=(0.59, 0.61))
        return cast("LatencyRecord", found)


def test_the_plan_is_checked_by_count_and_timed_once() -> None:
    bench = Bench((16, 24, 32))
    exact = MACS.macs(bench.plan.widths())
    limit = limit_of("flops", f"{exact / 1000:f}k")
    chosen = solve_counted(cast("Solving", bench), limit)
    assert chosen.met
    assert chosen.plan == bench.plan
    assert (chosen.predicted_ms, chosen.measured_ms) == (5.5, pytest.approx(6.0))
    assert bench.timed == [bench.plan.widths()]
    assert [(number, aim) for number, _, aim in bench.learned] == [(1, exact)]
    assert bench.events[0]["count"] == exact
    assert f"plan: {exact:,} multiply-adds" in bench.said[0]


def test_a_plan_with_one_too_many_is_refused_before_it_is_timed() -> None:
    bench = Bench((16, 24, 32))
    exact = MACS.macs(bench.plan.widths())
    limit = limit_of("flops", f"{(exact - 1) / 1000:f}k")
    with pytest.raises(BudgetMissedError, match=f"has {exact:,} multiply-adds"):
        solve_counted(cast("Solving", bench), limit)
    assert not bench.timed
