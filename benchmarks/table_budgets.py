"""The table of budgets that were asked for, and what was measured."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.budgets import missed
from targets.timing import relative_half

PLANS = ("first", "taken")  # of a run: the plan that was tried first, and the one it took


def budgets(result: dict[str, Any]) -> str:
    """A row a network and target, and one of all."""
    runs: list[dict[str, Any]] = result["runs"]
    effort, summary = result["effort"], result["summary"]
    cases = list(dict.fromkeys(run["case"] for run in runs))
    reached = [run for run in runs if not run["complaint"]]
    lines = [
        f"{len(runs)} of {summary['of']} runs: at most {effort['samples']} networks calibrated, "
        f"{effort['gate_epochs']} gated epochs of {effort['images']} images; plans built anew and "
        "timed beside the dense engine in fresh processes, without those that others disturbed. "
        f"Met: the median is at most the budget.{_known(reached)} Goals: the first plan meets it "
        "in 80 %, one of three rounds always, and none is more than 3 % below "
        f"({_percent(summary['taken_wasteful'])} are).",
        "",
        "| network on target | budgets | runs | first plan met | plan taken met | rounds at most "
        "| taken over budget |",
        "|---" * 7 + "|",
        *(_row(case, [run for run in runs if run["case"] == case]) for case in cases),
        _row("all", runs),
        "",
    ]
    remarks = [
        f"- No plan: {run['case']} {run['budget']:g}x: {run['complaint']}"
        for run in runs
        if run["complaint"]
    ]
    return "\n".join([*lines, *remarks, ""] if remarks else lines)


def _row(name: str, runs: list[dict[str, Any]]) -> str:
    asked = [run["budget"] for run in runs]
    reached = [run for run in runs if not run["complaint"]]
    over = {
        which: [run["judged"][which]["ratio"] / run["budget"] for run in reached] for which in PLANS
    }
    tried = len(reached) + sum(missed(run) for run in runs)
    met = [f"{sum(share <= 1 for share in of)} of {tried}" for of in over.values()]
    rounds = max((run["rounds"][-1]["round"] for run in reached), default=0)
    taken = [f"{share:.3f}" for share in sorted(over["taken"])]
    budgets = [f"{budget:g}x" for budget in sorted(asked, reverse=True)]
    cells = [_range(budgets), str(len(runs)), *met, str(rounds), _range(taken)]
    return f"| {name} | {' | '.join(cells)} |"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _range(of: list[str]) -> str:
    return " to ".join(dict.fromkeys([of[0], of[-1]])) if of else "–"


def _known(reached: list[dict[str, Any]]) -> str:
    """How well the medians are known."""
    plans = [run["judged"][which] for run in reached for which in PLANS]
    halves = [relative_half(plan["ratio"], plan["ci95"]) for plan in plans]
    if not halves:
        return ""
    return (
        f" Half the 95 % interval of a median is {median(halves):.1%} (median), "
        f"{max(halves):.1%} at most."
    )
