"""The budget of the closed loop, and which of the measured plans is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibration.widths import Plan
from pipeline.errors import BudgetMissedError, BudgetUnreachableError
from pipeline.options import PruneOptions
from pipeline.stages.closed_loop import Limit
from pipeline.stages.prune import _best
from pipeline.stages.rounds import Round

CALIBRATION: dict[str, Any] = {
    "anchor_ms": 10.0,
    "floor": {"ms": 2.0, "ratio": 0.2},
    "tail": {"p50": 1.0, "p90": 1.1, "p99": 1.5},
}


ANY_PLAN = Plan("", {"conv": (0, 1)})  # which channels it keeps does not matter here


def limit_of(budget: str, percentile: str = "p50") -> Limit:
    options = PruneOptions(budget=budget, percentile=percentile)  # type: ignore[arg-type]
    return Limit.of(options, CALIBRATION)


@pytest.mark.parametrize(
    ("budget", "percentile", "budget_ms", "p50_ms"),
    [
        ("6ms", "p50", 6.0, 6.0),
        ("0.6x", "p50", 6.0, 6.0),
        ("6ms", "p99", 6.0, 4.0),  # so that the tail still fits
        ("0.6x", "p99", 9.0, 6.0),  # of the dense engine's own p99
    ],
)
def test_limit_is_a_median(budget: str, percentile: str, budget_ms: float, p50_ms: float) -> None:
    limit = limit_of(budget, percentile)
    assert limit.budget_ms == pytest.approx(budget_ms)
    assert limit.p50_ms == pytest.approx(p50_ms)


@pytest.mark.parametrize(
    ("budget", "percentile", "floor"),
    [("1.9ms", "p50", "2.000 ms"), ("0.19x", "p50", "2.000 ms"), ("2.9ms", "p99", "3.000 ms")],
)
def test_budget_below_the_floor(budget: str, percentile: str, floor: str) -> None:
    with pytest.raises(BudgetUnreachableError) as caught:
        limit_of(budget, percentile)
    assert f"takes {floor} (0.20x of dense)" in caught.value.message
    assert caught.value.fix == "ask for at least 0.21x"


def test_budget_on_the_floor_is_tried() -> None:
    assert limit_of("2ms").p50_ms == 2.0


def round_of(ratio: float, high: float, limit_ms: float = 6.0) -> Round:
    interval = (ratio - 0.01, high)
    return Round(1, 1, ANY_PLAN, 5.0, ratio, interval, anchor_ms=10.0, limit_ms=limit_ms)


def test_plan_meets_the_limit_with_its_whole_interval() -> None:
    assert round_of(0.59, 0.60).met
    assert not round_of(0.59, 0.61).met


def test_plan_that_gives_accuracy_away_does_not_fit() -> None:
    least_ms = limit_of("6ms").least_ms(margin=0.02)
    assert round_of(0.585, 0.59).fits(least_ms)
    assert not round_of(0.578, 0.582).fits(least_ms)
    assert round_of(0.50, 0.51).met
    assert not round_of(0.50, 0.51).fits(least_ms)


def test_plan_may_be_faster_by_what_its_latency_is_not_known_to() -> None:
    least_ms = limit_of("6ms").least_ms(margin=0.02)
    assert round_of(0.57, 0.59).fits(least_ms)
    assert not round_of(0.56, 0.58).fits(least_ms)  # by half of that: there is time for another
    assert not round_of(0.58, 0.60).fits(least_ms)
    assert round_of(0.54, 0.59).fits(least_ms)
    assert not round_of(0.54, 0.58).fits(least_ms)  # however little is known, that it is too fast


def test_plan_that_is_as_far_below_the_budget_as_was_asked_gives_nothing_away() -> None:
    least_ms = limit_of("6ms").least_ms(margin=0.1)
    assert round_of(0.54, 0.545).fits(least_ms)
    assert not round_of(0.53, 0.535).fits(least_ms)


def test_plan_without_room_for_the_final_measurement_does_not_fit() -> None:
    close = round_of(0.59, 0.599)
    assert close.met
    assert not close.safe
    assert not close.fits(least_ms=0.0)
    assert round_of(0.59, 0.5965).safe  # half a percent of the budget is room enough


def test_plan_for_a_count_meets_its_budget_at_any_latency() -> None:
    found = replace(round_of(0.9, 0.95), limit_ms=None)
    assert found.met
    assert found.fits(least_ms=0.0)
    assert found.to_json()["met"] is True
    assert found.to_json()["kept"] == [2]


def test_slowest_plan_that_met_is_taken() -> None:
    rounds = [round_of(0.5, 0.51), round_of(0.58, 0.59), round_of(0.60, 0.62), round_of(0.4, 0.41)]
    assert _best(rounds, limit_of("6ms"), PruneOptions()) is rounds[1]


def test_plan_with_room_for_the_final_measurement_is_preferred() -> None:
    safe, close, closer = round_of(0.57, 0.58), round_of(0.59, 0.598), round_of(0.588, 0.599)
    assert _best([closer, close, safe], limit_of("6ms"), PruneOptions()) is safe
    assert _best([closer, close], limit_of("6ms"), PruneOptions()) is close


def test_no_plan_that_met_is_an_error_with_the_last_measurement() -> None:
    with pytest.raises(BudgetMissedError, match=r"no plan met 6\.000 ms in 1 rounds.*7\.000 ms"):
        _best([round_of(0.7, 0.71)], limit_of("6ms"), PruneOptions())
    with pytest.raises(BudgetMissedError) as caught:
        _best([round_of(0.7, 0.71)], limit_of("6ms"), PruneOptions(plan=Path("plan.json")))
    assert caught.value.fix == "give another --plan, or ask for a larger --budget"
