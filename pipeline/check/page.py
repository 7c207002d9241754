"""A check as an HTML page: its result and what its history says, handed to the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.check.history import Entry
from pipeline.check.result import CheckResult
from pipeline.check.steps import steps
from pipeline.files import write_atomically
from pipeline.report import render_check

Series = tuple[str | None, str, str]
SHOWN = 500  # checks of a history, the latest


def write_page(path: Path, result: CheckResult, entries: Sequence[Entry]) -> None:
    """`entries`: the history with this check in it; empty where none is kept."""
    write_atomically(path, render_check(record_of(result, entries)).encode())


def record_of(result: CheckResult, entries: Sequence[Entry]) -> dict[str, Any]:
    """What the page is made from, and what it keeps."""
    return {
        "kind": "check",
        "result": result.to_json(),
        "history": _history(entries, Entry.of(result).series),
    }


def _history(entries: Sequence[Entry], series: Series) -> dict[str, Any] | None:
    """The checks of a series, and the levels between its steps."""
    alike = [entry for entry in entries if entry.series == series][-SHOWN:]
    if not alike:
        return None
    levels = [entry.level for entry in alike]
    starts = [0, *(step.index for step in steps(levels))]
    pieces = zip(starts, [*starts[1:], len(levels)], strict=True)
    is_share = alike[-1].slowdown is not None
    plain = math.expm1 if is_share else math.exp
    return {
        "is_share": is_share,  # slowdown against the baseline, or else ms
        "checks": [
            {
                "at": entry.at,
                "candidate": entry.candidate,
                "verdict": entry.verdict,
                "accepted": entry.accepted,
                "value": plain(entry.level),
            }
            for entry in alike
        ],
        "levels": [
            {"first": first, "end": end, "value": plain(float(np.median(levels[first:end])))}
            for first, end in pieces
        ],
    }
