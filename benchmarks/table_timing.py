"""The table of how well a latency ratio is measured, under what others do meanwhile."""

from __future__ import annotations

from typing import Any

CONDITIONS = {
    "quiet": "nothing else running",
    "other": "a busy process on the other core",
    "same": "a busy process on the same core",
    "bursts": "bursts on either core",
}
METHODS = ("wgates", "plain median", "plain mean", "plain min")


def timing(result: dict[str, Any], judges: dict[str, Any]) -> str:
    """Share of trials within the tolerance and 95 % quantile of the error, ours and plain ones'."""
    trials = {found["trials"] for found in result["summary"].values()}
    lines = [
        f"Two networks whose true ratio is known; {max(trials)} trials under each condition, each "
        "in a fresh process, all methods with equal time. Each cell: share of trials within the "
        "tolerance; 95 % of the errors are below.",
        "",
        "| condition (tolerance) | wgates | plain median | plain mean | plain minimum "
        "| our 95 % interval covers | median s |",
        "|---" * 7 + "|",
        *(_condition_row(name, found) for name, found in result["summary"].items()),
        "",
        _judged(judges),
        "",
    ]
    return "\n".join(lines)


def _condition_row(name: str, found: dict[str, Any]) -> str:
    cells = [
        f"{found['methods'][method]['within']:.0%}; {found['methods'][method]['error_p95']:.1%}"
        for method in METHODS
    ]
    label = f"{CONDITIONS[name]} ({found['tolerance']:.0%})"
    end = f"{found['coverage']:.0%} | {found['seconds_median']:.2f}"
    return f"| {label} | {' | '.join(cells)} | {end} |"


def _judged(judges: dict[str, Any]) -> str:
    told = [
        f"{name} {found['difference']:+.1%} ({size} network)"
        for size, of in judges["agreement"].items()
        for name, found in of.items()
    ]
    loop = judges["overhead"]["ort-cpu"]["difference"]
    return (
        "Beside outside judges on the same model, interleaved, our median differs by: "
        f"{'; '.join(told)}. The loop itself changes the median of a 1 ms engine by {loop:+.2%}."
    )
