"""The README's table of the networks that can be pruned."""

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
    limits = result["limits"]
    lines = [
        f"{len(rows)} networks with random weights: {result['success']}; outputs within "
        f"{limits['tolerance']:g} of the largest, in at most {limits['cpu_seconds']} CPU seconds "
        f"and {limits['memory_gib']} GiB a network.",
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
