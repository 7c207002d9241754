"""Plans that may be taken are timed at two times, others where somebody else computed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from calibration import several
from calibration.database import LatencyDatabase
from calibration.errors import CandidateLostError
from calibration.isolated import IsolatedBench
from calibration.proposed import Proposed
from calibration.several import MOST
from calibration.widths import WidthVector
from targets.errors import EngineError

from .test_several import ANCHOR_MS, SKELETON, anchor, bench, scripted

__all__ = ["anchor", "bench"]  # fixtures

PLAN, OTHER = (WidthVector(SKELETON.groups.names, kept) for kept in ((16, 24), (8, 8)))
LOUD = 1.15  # the anchor's time beside a neighbour

Given = Callable[..., list[int]]


@pytest.fixture
def proposed(bench: IsolatedBench, anchor: Path, tmp_path: Path) -> Iterator[Proposed]:
    with (
        LatencyDatabase(tmp_path / "plans.sqlite") as first,
        LatencyDatabase(tmp_path / "plans-later.sqlite") as later,
    ):
        yield Proposed(bench, anchor, first, later)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """Timings come to these ratios and slowdowns, in order; the list tells how many were made."""

    def call(*timings: tuple[float, float]) -> list[int]:
        left, made = iter(timings), []

        def measure(*args: Any, **named: Any) -> Any:
            ratio, slow = next(left)
            made.append(1)
            pair = ratio * slow * ANCHOR_MS, slow * ANCHOR_MS
            return scripted([pair] * MOST)(*args, **named)

        monkeypatch.setattr(several, "measure_blocks", measure)
        return made

    return call


def test_where_the_machine_is_quiet_a_plan_is_timed_once(proposed: Proposed, given: Given) -> None:
    made = given((0.25, 1.0), (0.5, 1.01))
    for _ in range(2):
        assert proposed.record(PLAN).ratio == pytest.approx(0.25)
        assert proposed.record(OTHER).ratio == pytest.approx(0.5)
    assert len(made) == 2
    assert not proposed.in_doubt(OTHER)


def test_one_that_proves_to_have_been_disturbed_is_timed_again(
    proposed: Proposed, given: Given
) -> None:
    made = given((0.24, LOUD), (0.5, 1.0), (0.25, 1.0))
    assert proposed.record(PLAN).ratio == pytest.approx(0.24)
    assert not proposed.in_doubt(PLAN), "nothing quieter is known yet"
    proposed.record(OTHER)
    assert proposed.in_doubt(PLAN)
    assert proposed.record(PLAN).ratio == pytest.approx(0.25)
    assert proposed.record(PLAN).ratio == pytest.approx(0.25)
    assert not proposed.in_doubt(PLAN)
    assert len(made) == 3


def test_what_may_be_taken_is_timed_again_at_once_and_the_quieter_time_stays(
    proposed: Proposed, given: Given
) -> None:
    made = given((0.5, 1.0), (0.24, LOUD), (0.2, 1.2 * LOUD), (0.23, 1.1 * LOUD), (0.25, 1.0))
    proposed.record(OTHER)
    for ratio in (0.24, 0.24, 0.25):
        assert proposed.record(PLAN, insist=True).ratio == pytest.approx(ratio)
        assert proposed.in_doubt(PLAN) == (ratio != 0.25)
    assert len(made) == 5


def test_as_long_as_the_machine_is_as_loud_nothing_else_is_timed_again(
    proposed: Proposed, given: Given
) -> None:
    made = given((0.5, 1.0), (0.24, LOUD), (0.4, 1.01 * LOUD), (0.41, 1.0))
    third = WidthVector(SKELETON.groups.names, (24, 32))
    proposed.record(OTHER)
    for _ in range(2):
        proposed.record(PLAN)
    assert len(made) == 2, "it would be as slow again"
    proposed.record(third)
    proposed.record(PLAN)
    assert len(made) == 3
    assert proposed.in_doubt(PLAN)


@pytest.mark.parametrize(
    ("between", "again"), [((0.3, 0.4), False), ((0.1, 0.2), False), ((0.26, 0.3), True)]
)
def test_what_surely_is_not_looked_for_is_not_timed_again(
    proposed: Proposed, given: Given, between: tuple[float, float], again: bool
) -> None:
    made = given((0.5, 1.0), (0.25, LOUD), (0.25, LOUD))
    proposed.record(OTHER, between)
    proposed.record(PLAN, between, insist=True)
    assert len(made) == 2 + again


def test_a_ratio_near_one_cannot_be_moved(proposed: Proposed, given: Given) -> None:
    given((0.5, 1.0), (0.97, LOUD))
    proposed.record(OTHER)
    proposed.record(PLAN)
    assert not proposed.in_doubt(PLAN)
    assert proposed.known()[PLAN].off == pytest.approx(0, abs=3e-3)


def test_what_may_be_taken_is_timed_at_two_times_and_is_as_uncertain_as_they_lie_apart(
    proposed: Proposed, given: Given
) -> None:
    made = given((0.5, 1.0), (0.588, 1.0), (0.6, 1.005))
    proposed.record(OTHER)
    once = proposed.record(PLAN)
    assert once.ratio_ci95 == pytest.approx((0.588, 0.588))
    for _ in range(2):  # the second time it is read back
        twice = proposed.record(PLAN, insist=True)
        assert twice.ratio == pytest.approx((0.588 * 0.6) ** 0.5)
        assert twice.candidate_ms == pytest.approx(
            (0.588 * 0.6 * 1.005) ** 0.5 * ANCHOR_MS, rel=1e-3
        )
        assert twice.ratio_ci95[0] < 0.588
        assert twice.ratio_ci95[1] > 0.6
    assert len(made) == 3
    assert not proposed.in_doubt(PLAN)


def test_a_timing_that_others_disturbed_is_not_averaged_in(
    proposed: Proposed, given: Given
) -> None:
    given((0.5, 1.0), (0.24, LOUD), (0.25, 1.0))
    proposed.record(OTHER)
    assert proposed.record(PLAN, insist=True).ratio == pytest.approx(0.25)
    assert not proposed.in_doubt(PLAN)


def test_what_cannot_be_timed_again_keeps_its_first_time(
    proposed: Proposed, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    given((0.5, 1.0), (0.24, LOUD))
    proposed.record(OTHER)
    assert proposed.record(PLAN).ratio == pytest.approx(0.24)

    def failing(*args: Any, **named: Any) -> Any:
        raise EngineError("the timing process failed: killed", fix="again")

    monkeypatch.setattr(several, "measure_blocks", failing)
    assert proposed.in_doubt(PLAN)
    assert proposed.record(PLAN, insist=True).ratio == pytest.approx(0.24)


def test_what_cannot_be_timed_is_lost(proposed: Proposed, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **named: Any) -> Any:
        raise EngineError("the timing process failed: killed", fix="again")

    monkeypatch.setattr(several, "measure_blocks", failing)
    for _ in range(2):  # the second time without trying
        with pytest.raises(CandidateLostError, match="could not be timed: the timing process"):
            proposed.record(PLAN)
        monkeypatch.undo()
