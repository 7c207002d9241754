"""The table on caches that another engine's turn left cold."""

from __future__ import annotations

from typing import Any

SHOWN = (1, 2, 4, 8, 16)  # the n-th call


def refill(result: dict[str, Any]) -> str:
    """One row a network: its calls after the dense engine's, then the ratios that come of it."""
    cases = result["cases"]
    calls = list(next(iter(cases.values()))["over_fresh_processes"])
    head = [f"call {n}" for n in SHOWN] + [
        f"ratio, {n} first call{'s' if n != '1' else ''} left out" for n in calls
    ]
    return "\n".join(
        [
            "A pruned network's calls after some of the dense one's, as multiples of what they "
            "settle at; then its measured ratio to the dense one where so many calls of a turn do "
            "not count, as a multiple of the ratio in fresh processes with long turns (median, "
            f"95 %; {result['rounds']} interleaved rounds).",
            "",
            "| network (ONNX, dense to pruned) | " + " | ".join(head) + " |",
            "|---" * (1 + len(head)) + "|",
            *(_row(name, case) for name, case in cases.items()),
            "",
        ]
    )


def _row(name: str, case: dict[str, Any]) -> str:
    dense, pruned = (case["bytes"][of] / 1e6 for of in ("dense", "pruned"))
    cells = [f"{name} ({dense:.1f} to {pruned:.1f} MB)"]
    cells += [f"{case['ms_by_call'][n - 1] / case['settled_ms']:.2f}" for n in SHOWN]
    for over in case["over_fresh_processes"].values():
        low, high = over["ci95"]
        cells.append(f"{over['median']:.2f} ({low:.2f} to {high:.2f})")
    return f"| {' | '.join(cells)} |"
