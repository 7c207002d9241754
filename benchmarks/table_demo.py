"""The worked run's table: its certificate, and what it took."""

from __future__ import annotations

from typing import Any

from pipeline.report import summary_rows


def demo(result: dict[str, Any]) -> str:
    first = result["runs"][0]
    rows = summary_rows(first["certificate"])
    lines = ["| | dense | pruned |", "|---|---|---|"]
    lines += [f"| {label} | {dense} | {pruned} |" for label, dense, pruned in rows]
    held, machine = first["held_out"], result["environment"]["machine"]
    seconds = ", ".join(f"{run['seconds']:.0f}" for run in result["runs"])
    verdicts = ", ".join(result["verdicts"])
    lines += [
        "",
        f"Seed 0 on {machine['device']}, {machine['runtime']}, one thread. Over seeds "
        f"{', '.join(str(run['seed']) for run in result['runs'])}: verdicts {verdicts}; top-1 "
        f"{_tops(result)} %; {seconds} s in all; largest process "
        f"{result['peak_process_bytes'] / 2**30:.1f} GiB. LPNet's held-out error: "
        f"{held['mean']:.1%} mean, {held['within_5']:.0%} of {held['records']} networks within "
        "5 %. "
        "The machine is small and shared: read ratios, not milliseconds.",
        "",
    ]
    return "\n".join(lines)


def _tops(result: dict[str, Any]) -> str:
    pairs = []
    for run in result["runs"]:
        accuracy = run["certificate"]["accuracy"]
        pairs.append(
            f"{100 * accuracy['dense']['top1']:.1f} -> {100 * accuracy['engine']['top1']:.1f}"
        )
    return ", ".join(pairs)
