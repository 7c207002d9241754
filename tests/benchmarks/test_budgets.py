from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.budgets import beside_older, summary
from benchmarks.budgets_judged import Judge
from benchmarks.readme_budgets import budgets
from calibration.database import LatencyRecord
from targets import load_target
from targets.base import TargetOptions
from targets.blocks import BlockRun
from targets.samples import Samples

from ..calibration.chain import chain

EFFORT = {"images": 640, "gate_epochs": 15, "samples": 300}


def line(budget: float, first: float, taken: float, rounds: int = 1) -> dict[str, Any]:
    plans = {"first": first, "taken": taken}
    judged = {
        name: {"ratio": ratio, "ci95": [0.99 * ratio, 1.01 * ratio], "all": [ratio] * 4}
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


def test_where_the_order_of_loading_decides_it_is_said() -> None:
    run = line(0.5, 0.5, 0.5)
    run["judged"]["taken"]["all"] = [0.4, 0.6, 0.4, 0.6]
    found = budgets({"runs": [run], "summary": summary([run]), "effort": EFFORT}).splitlines()
    said = "a 0.5x: 0.800 of the budget in processes that load the dense engine first, 1.200 in"
    assert any(said in told for told in found)
    runs = [line(0.5, 0.5, 0.5)]
    assert "load" not in budgets({"runs": runs, "summary": summary(runs), "effort": EFFORT})


def block(ms: float) -> Samples:
    wall_ns = np.full(20, round(1e6 * ms))
    return Samples(wall_ns, wall_ns, np.zeros(20, int))


def test_processes_that_others_disturbed_do_not_judge_a_plan() -> None:
    skeleton, target = chain((16, 16)), load_target("fake", TargetOptions())
    full = skeleton.groups.full()
    calibrated = tuple(LatencyRecord(full, 0.5, (0.5, 0.5), 4.0, ()) for _ in range(20))
    judge = Judge(skeleton, target, calibrated, processes=3, seconds=0.1)
    dense, plan = (4.0, 5.0, 4.04), (2.0, 3.5, 2.02)  # in the second, a neighbour computes
    blocks = {"dense": tuple(map(block, dense)), "plan": tuple(map(block, plan))}
    ratios, quiet = judge.ratios(BlockRun(target.fingerprint(), blocks), "plan")
    assert ratios == pytest.approx([0.5, 0.7, 0.5])
    assert quiet.tolist() == [True, False, True]
