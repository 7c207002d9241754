"""The table of the networks that can be pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SOURCES = {
    "torchvision": "torchvision, classification",
    "segmentation": "torchvision, backbones for segmentation",
    "detection": "torchvision, backbones for detection",
    "timm": "timm",
}


def coverage(result: dict[str, Any]) -> str:
    """Outcomes by source, and the reasons of those that are not pruned."""
    rows: list[dict[str, Any]] = result["networks"]
    ended = [row for row in rows if row["seconds"] is not None]
    lines = [
        f"{len(rows)} networks with random weights: {result['success']}; outputs within "
        f"{result['limits']['tolerance']:g} of the largest. It took "
        f"{np.median([row['seconds'] for row in ended]):.0f} CPU seconds and "
        f"{np.median([row['peak_mib'] for row in ended]) / 1024:.1f} GiB (median), at most "
        f"{max(row['seconds'] for row in ended):.0f} s and "
        f"{max(row['peak_mib'] for row in ended) / 1024:.0f} GiB.",
        "",
        "| networks | tried | pruned | refused before training | failed "
        "| parameters that can go: median (least) |",
        "|---" * 6 + "|",
        *(
            _row(label, [row for row in rows if row["name"].startswith(f"{source}:")])
            for source, label in SOURCES.items()
        ),
        "",
    ]
    others = [row for row in rows if row["outcome"] != "ok"]
    lines += [f"- `{row['name']}` {row['outcome']}: {row['reason']}" for row in others]
    if missing := result["not_run"]:
        lines += [f"- Not run: {', '.join(missing)}."]
    return "\n".join([*lines, ""])


def _row(label: str, rows: Sequence[dict[str, Any]]) -> str:
    counts = [
        sum(row["outcome"] == outcome for row in rows) for outcome in ("ok", "refused", "failed")
    ]
    shares = [row["share"] for row in rows if row["outcome"] == "ok"]
    told = f"{np.median(shares):.0%} ({min(shares):.0%})" if shares else "–"
    return f"| {label} | {len(rows)} | {' | '.join(map(str, counts))} | {told} |"
