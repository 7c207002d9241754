"""The README's first table: counts of what was tried, and the rivals that are told of."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.table_headlines import NEEDED, headlines


def arm(top1: float) -> dict[str, Any]:
    return {"test": {"top1": top1}, "ratio_to_dense": 0.5}


def accuracy(uniform_at_half: dict[str, Any]) -> dict[str, Any]:
    budgets = {
        "0.8x": {"wgates": arm(0.9), "l1": arm(0.85), "uniform": arm(0.8)},
        "0.5x": {"wgates": arm(0.8), "l1": arm(0.81), "uniform": uniform_at_half},
    }
    study = {"budgets": budgets, "made": {}, "dense": {"test": {"top1": 0.9}}}
    return {"protocol": {"form": {"networks": ["net"]}}, "studies": {"net-seed0": study}}


def verdicts(checks: int, regressions: float) -> dict[str, Any]:
    return {"checks": checks, "shares": {"regression": regressions}}


def killed(code: int, lost: int, **faults: int) -> dict[str, Any]:
    return {"rerun_code": code, "rows_lost": lost, "faults": faults}


def predictors(ours: float, sums: float, linear: float) -> dict[str, Any]:
    named = {"linear": linear, "sums": sums, "LPNet": ours}
    return {"methods": {name: {"mean": e, "within_5": 1 - e} for name, e in named.items()}}


def condition(ours: float, plain: float) -> dict[str, Any]:
    methods = {"wgates": {"within": ours}, "plain median": {"within": plain}}
    return {"methods": methods, "trials": 100, "tolerance": 0.02}


def text(uniform_at_half: dict[str, Any]) -> str:
    live = {
        "cases": {
            "A/A": {"both": verdicts(40, 0.025)},
            "5%": {"quiet": verdicts(20, 1.0), "noisy": verdicts(20, 0.9)},
        },
        "seconds_median": 17.4,
    }
    runs = [killed(0, 0), killed(1, 2), killed(0, 0, plan=1)]
    results = {
        "budgets.json": {
            "summary": {"runs": 4, "refused": ["b"], "taken_met": 2 / 3, "taken_wasteful": 1 / 3},
            "runs": [{"case": case} for case in "aabb"],
        },
        "accuracy.json": accuracy(uniform_at_half),
        "calibration.json": {
            "cases": {"a": predictors(0.01, 0.03, 0.05), "b": predictors(0.03, 0.05, 1)}
        },
        "coverage.json": {"networks": [{"outcome": name} for name in ("ok", "ok", "refused")]},
        "timing.json": {"summary": {"quiet": condition(1, 0.9), "bursts": condition(0.99, 0.4)}},
        "check.json": {"live": live},
        "gated-step.json": {"cases": [{"time_ratio": {"median": of}} for of in (1.06, 1.04)]},
        "faults.json": {"kills": {"fake": {"runs": runs}}},
    }
    return headlines(*(results[name] for name in NEEDED))


@pytest.mark.parametrize(
    "told",
    [
        "by 2 of 3 runs (2 pairs of network and runtime); 1 end more than 3 % below it",
        "2.0% mean error, 98% of networks within 5 %; the best other predictor (sums): 4.0%",
        "with bursts on either core, 99% of 100 ratios come within 2%; of plain medians 40%",
        "1 false alarms in 40 checks of equal engines; 38 of 40 slowdowns of 5 % found; 17 s",
        "2 of 3 of torchvision and timm; 1 refused before training, 0 failed",
        "1.04 to 1.06 of a dense step's time",
        "1 of 3 runs that were killed at random times; 2 measurements lost",
    ],
)
def test_each_promise_is_told_by_what_was_measured(told: str) -> None:
    assert told in text(arm(0.7))


def test_accuracy_is_told_at_the_tightest_budget_that_the_others_meet() -> None:
    assert (
        "W-Gates, net at 0.5x: 1.00 points behind the best baseline (l1), 10.00 points ahead of "
        "the best without this selection (uniform), 10.00 points behind dense"
    ) in text(arm(0.7))
    assert "W-Gates, net at 0.8x: " in text({"complaint": "error: no plan met it"})
