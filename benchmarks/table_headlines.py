"""The README's table of what was promised and what was measured, one line a promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from benchmarks.table_accuracy import best_rivals
from benchmarks.table_calibration import OURS
from benchmarks.table_timing import CONDITIONS

Result = Mapping[str, Any]


def _budgets(result: Result) -> str:
    summary = result["summary"]
    tried = summary["runs"] - len(summary["refused"])
    met, wasteful = (round(summary[key] * tried) for key in ("taken_met", "taken_wasteful"))
    cases = len({run["case"] for run in result["runs"]})
    return (
        f"by {met} of {tried} runs ({cases} pairs of network and runtime); {wasteful} "
        "end more than 3 % below it"
    )


def _accuracy(result: Result) -> str:
    """At the tightest budget that a rival without our selection meets, or the tightest of all."""
    told = best_rivals(dict(result))
    reached = [name for name, words in told.items() if "without" in " ".join(words)]
    name = (reached or list(told))[-1]
    return f"W-Gates, {name}: {', '.join(told[name])}"


def _predicted(result: Result) -> str:
    found = [case["methods"] for case in result["cases"].values()]
    errors = {name: mean(case[name]["mean"] for case in found) for name in found[0]}
    best = min((name for name in errors if name != OURS), key=lambda name: errors[name])
    within = mean(case[OURS]["within_5"] for case in found)
    return (
        f"{errors[OURS]:.1%} mean error, {within:.0%} of networks within 5 %; the best other "
        f"predictor ({best}): {errors[best]:.1%}"
    )


def _measured(result: Result) -> str:
    """Under the condition in which the plain median does worst."""
    plain, ours, condition = min(
        (*(found["methods"][name]["within"] for name in ("plain median", "wgates")), condition)
        for condition, found in result["summary"].items()
    )
    found = result["summary"][condition]
    return (
        f"with {CONDITIONS[condition]}, {ours:.0%} of {found['trials']} ratios come within "
        f"{found['tolerance']:.0%}; of plain medians {plain:.0%}"
    )


def _checked(result: Result) -> str:
    cases = result["live"]["cases"]
    alarms, same = (_count(cases["A/A"]["both"], "regression"), cases["A/A"]["both"]["checks"])
    slower = [cases["5%"][condition] for condition in ("quiet", "noisy")]
    found, tried = (
        sum(_count(one, "regression") for one in slower),
        sum(one["checks"] for one in slower),
    )
    return (
        f"{alarms} false alarms in {same} checks of equal engines; {found} of {tried} slowdowns "
        f"of 5 % found; {result['live']['seconds_median']:.0f} s a check"
    )


def _count(found: Result, verdict: str) -> int:
    return round(found["shares"][verdict] * found["checks"])


def _covered(result: Result) -> str:
    counts: dict[str, int] = {}
    for network in result["networks"]:
        counts[network["outcome"]] = counts.get(network["outcome"], 0) + 1
    return (
        f"{counts['ok']} of {len(result['networks'])} of torchvision and timm; "
        f"{counts.get('refused', 0)} refused before training, {counts.get('failed', 0)} failed"
    )


def _cost(result: Result) -> str:
    ratios = [case["time_ratio"]["median"] for case in result["cases"]]
    return f"{min(ratios):.2f} to {max(ratios):.2f} of a dense step's time"


def _killed(result: Result) -> str:
    runs = [run for line in result["kills"].values() for run in line["runs"]]
    gone_on = sum(run["rerun_code"] == 0 and not run["faults"] for run in runs)
    lost = sum(run["rows_lost"] for run in runs)
    return (
        f"the same command goes on, to the same plan: {gone_on} of {len(runs)} runs that were "
        f"killed at random times; {lost} measurements lost"
    )


@dataclass(frozen=True)
class Line:
    what: str
    result: str  # file in benchmarks/results
    told: Callable[[Result], str]
    page: str  # in docs/, with the whole of it


LINES = (
    Line("Is the budget met?", "budgets.json", _budgets, "budgets"),
    Line("Accuracy at equal latency", "accuracy.json", _accuracy, "accuracy"),
    Line("How well is latency predicted?", "calibration.json", _predicted, "calibrating"),
    Line("How well is it measured beside other work?", "timing.json", _measured, "latency"),
    Line("Does a gate in CI cry wolf?", "check.json", _checked, "check"),
    Line("Which networks can be pruned?", "coverage.json", _covered, "pruning"),
    Line("What do gates cost in training?", "gated-step.json", _cost, "pruning"),
    Line("What if it is killed?", "faults.json", _killed, "reliability"),
)
NEEDED = tuple(line.result for line in LINES)


def headlines(*results: Result) -> str:
    """Of the files `NEEDED`, in their order."""
    rows = [
        f"| {line.what} | {line.told(result)} | [{line.page}](docs/{line.page}.md) |"
        for line, result in zip(LINES, results, strict=True)
    ]
    return "\n".join(["| | measured | all of it |", "|---|---|---|", *rows, ""])
