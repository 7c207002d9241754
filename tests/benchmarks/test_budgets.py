from __future__ import annotations

from typing import Any

import pytest

from benchmarks.budgets import summary


def line(budget: float, first: float, taken: float, rounds: int = 1) -> dict[str, Any]:
    judged = {"first": {"ratio": first}, "taken": {"ratio": taken}}
    found = [{"round": number} for number in range(1, rounds + 1)]
    return {"case": "a", "budget": budget, "complaint": "", "judged": judged, "rounds": found}


def test_the_shares_are_of_the_runs_that_were_not_refused() -> None:
    refused = {"case": "a", "budget": 0.3, "complaint": "below the floor"}
    lines = [line(0.8, 0.79, 0.79), line(0.6, 0.61, 0.59, rounds=2), line(0.5, 0.4, 0.4), refused]
    found = summary(lines)
    assert found["runs"] == 4
    assert found["refused"] == ["a 0.3x"]
    assert found["first_try_met"] == pytest.approx(2 / 3)
    assert found["taken_met"] == 1.0
    assert found["taken_wasteful"] == pytest.approx(1 / 3)
    assert found["most_rounds"] == 2
    assert found["in_one_round"] == pytest.approx(2 / 3)
    assert found["taken_over_budget"]["quartiles"][0] == pytest.approx(0.8)


def test_nothing_reached_is_said_and_not_counted() -> None:
    found = summary([{"case": "a", "budget": 0.3, "complaint": "below the floor"}])
    assert found["first_try_met"] is None
    assert found["refused"] == ["a 0.3x"]
