from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.budgets import beside_older, summary
from benchmarks.budgets_judged import calm_ratios
from benchmarks.table_budgets import budgets
from targets import load_target
from targets.base import TargetOptions
from targets.blocks import BlockRun
from targets.samples import Samples

EFFORT = {"images": 640, "gate_epochs": 15, "samples": 300}


def line(budget: float, first: float, taken: float, rounds: int = 1) -> dict[str, Any]:
    plans = {"first": first, "taken": taken}
    judged = {
        name: {"ratio": ratio, "ci95": [0.99 * ratio, 1.01 * ratio]}
        for name, ratio in plans.items()
    }
    found = [{"round": number} for number in range(1, rounds + 1)]
    return {"case": "a", "budget": budget, "complaint": "", "judged": judged, "rounds": found}


def test_the_shares_are_of_the_runs_that_were_not_refused() -> None:
    refused = {"case": "a", "budget": 0.3, "complaint": "below the floor"}
    missed = {"case": "a", "budget": 0.4, "complaint": "no plan met 0.4 ms in 3 rounds"}
    lines = [line(0.8, 0.79, 0.79), line(0.6, 0.61, 0.59, rounds=2), line(0.5, 0.4, 0.4)]
    found = summary([*lines, missed, refused])
    assert found["runs"] == 5
    assert (found["refused"], found["missed"]) == (["a 0.3x"], ["a 0.4x"])
    assert found["first_try_met"] == pytest.approx(2 / 4)
    assert found["taken_met"] == pytest.approx(3 / 4)
    assert found["taken_wasteful"] == pytest.approx(1 / 4)
    assert found["most_rounds"] == 2
    assert found["in_one_round"] == pytest.approx(2 / 4)
    assert found["taken_over_budget"]["quartiles"][0] == pytest.approx(0.8)


def test_nothing_reached_is_said_and_not_counted() -> None:
    found = summary([{"case": "a", "budget": 0.3, "complaint": "below the floor"}])
    assert found["first_try_met"] is None
    assert found["refused"] == ["a 0.3x"]


def test_runs_of_other_cases_stay() -> None:
    older = [line(0.8, 0.7, 0.7), line(0.5, 0.4, 0.4) | {"case": "b"}]
    found = beside_older([line(0.6, 0.5, 0.5), line(0.8, 0.6, 0.6)], older)
    assert [(run["case"], run["budget"]) for run in found] == [("a", 0.8), ("a", 0.6), ("b", 0.5)]
    assert found[0]["judged"]["taken"]["ratio"] == 0.6


def test_runs_that_were_not_made_anew_stay_while_their_case_has_its_budgets() -> None:
    older = [line(0.8, 0.7, 0.7), line(0.5, 0.4, 0.4)]
    (again, left) = beside_older([line(0.8, 0.6, 0.6)], older)
    assert again["judged"]["taken"]["ratio"] == 0.6
    assert left["budget"] == 0.5
    assert [run["budget"] for run in beside_older([line(0.7, 0.6, 0.6)], older)] == [0.7]


def test_the_table_has_a_row_a_case_and_one_of_all() -> None:
    lines = [line(0.8, 0.79, 0.79), line(0.6, 0.61, 0.59, rounds=2)]
    other = line(0.5, 0.4, 0.4) | {"case": "b"}
    refused = {"case": "b", "budget": 0.3, "complaint": "below the floor"}
    missed = {"case": "b", "budget": 0.4, "complaint": "no plan met 0.4 ms in 3 rounds"}
    runs = [*lines, other, missed, refused]
    found = budgets({"runs": runs, "summary": summary(runs), "effort": EFFORT}).splitlines()
    assert "| a | 0.8x to 0.6x | 2 | 1 of 2 | 2 of 2 | 2 | 0.983 to 0.988 |" in found
    assert "| b | 0.5x to 0.3x | 3 | 1 of 2 | 1 of 2 | 1 | 0.800 |" in found
    assert "| all | 0.8x to 0.3x | 5 | 2 of 4 | 3 of 4 | 2 | 0.800 to 0.988 |" in found
    assert any("5 of 30 runs" in told for told in found)
    assert any("3 % below (25% are)" in told for told in found)
    assert any("a median is 1.0% (median)" in told for told in found)
    assert any("b 0.3x: below the floor" in told for told in found)


def block(ms: float) -> Samples:
    wall_ns = np.full(20, round(1e6 * ms))
    return Samples(wall_ns, wall_ns, np.zeros(20, int))


def run_of(**engines: tuple[float, ...]) -> BlockRun:
    blocks = {name: tuple(map(block, medians)) for name, medians in engines.items()}
    return BlockRun(load_target("fake", TargetOptions()).fingerprint(), blocks)


def test_rounds_that_others_disturbed_do_not_judge_a_plan() -> None:
    found = run_of(dense=(4.0, 5.0, 4.1, 5.2), plan=(2.0, 3.5, 2.05, 3.6))
    assert calm_ratios(found, "plan") == pytest.approx([0.5, 0.5])


def test_luck_of_single_processes_is_not_held_against_a_plan() -> None:
    rng = np.random.default_rng(0)
    dense, plan = np.exp(rng.normal(0, [[0.05], [0.15]], (2, 2000)))
    found = run_of(dense=tuple(4 * dense), plan=tuple(2 * plan))
    assert np.median(calm_ratios(found, "plan")) == pytest.approx(0.5, rel=0.02)
    lucky = dense <= np.quantile(dense, 0.5)
    assert np.median(0.5 * plan[lucky] / dense[lucky]) > 0.515  # by the dense engine alone
    together = np.log(dense * plan)
    calm = together <= np.median(together)
    assert np.median(0.5 * plan[calm] / dense[calm]) < 0.47  # by both, however much each varies
