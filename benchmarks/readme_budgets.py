"""The README's table of budgets that were asked for, and what was measured."""

from __future__ import annotations

from typing import Any

from benchmarks.budgets import missed


def budgets(result: dict[str, Any]) -> str:
    """A row a network and target, and one of all."""
    runs: list[dict[str, Any]] = result["runs"]
    effort, summary = result["effort"], result["summary"]
    cases = list(dict.fromkeys(run["case"] for run in runs))
    failed = [run for run in runs if run["complaint"]]
    lines = [
        f"{len(runs)} of {summary['of']} runs: at most {effort['samples']} networks calibrated, "
        f"{effort['gate_epochs']} gated epochs of {effort['images']} images; plans built anew and "
        "timed beside the dense engine in fresh processes. Met: the median is at most the budget.",
        "",
        "| network on target | budgets | runs | first plan met | plan taken met | rounds at most "
        "| taken over budget |",
        "|---" * 7 + "|",
        *(_row(case, [run for run in runs if run["case"] == case]) for case in cases),
        _row("all", runs),
        "",
        *(f"- No plan: {run['case']} {run['budget']:g}x: {run['complaint']}" for run in failed),
    ]
    return "\n".join([*lines, ""] if failed else lines)


def _row(name: str, runs: list[dict[str, Any]]) -> str:
    asked = [run["budget"] for run in runs]
    reached = [run for run in runs if not run["complaint"]]
    over = {
        which: [run["judged"][which]["ratio"] / run["budget"] for run in reached]
        for which in ("first", "taken")
    }
    tried = len(reached) + sum(missed(run) for run in runs)
    met = [f"{sum(share <= 1 for share in of)} of {tried}" for of in over.values()]
    rounds = max((run["rounds"][-1]["round"] for run in reached), default=0)
    taken = f"{min(over['taken']):.3f} to {max(over['taken']):.3f}" if reached else "–"
    cells = [f"{max(asked):g}x to {min(asked):g}x", str(len(runs)), *met, str(rounds), taken]
    return f"| {name} | {' | '.join(cells)} |"
