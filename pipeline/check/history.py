"""The history of checks: one JSON object a line, and what it says about the next check."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.check.result import CheckResult
from pipeline.check.steps import steps
from pipeline.errors import DeployError
from pipeline.files import append_line, disk_faults_told

_KEYS = {
    "at",
    "verdict",
    "candidate",
    "candidate_sha256",
    "baseline",
    "baseline_sha256",
    "fingerprint_sha256",
    "percentile",
    "candidate_ms",
    "slowdown",
    "accepted",
}


@dataclass(frozen=True)
class Entry:
    """A past check."""

    at: str
    verdict: str
    candidate: str
    candidate_sha256: str
    baseline: str | None
    baseline_sha256: str | None
    fingerprint_sha256: str
    percentile: str
    candidate_ms: float
    slowdown: float | None  # share, against the baseline
    accepted: str  # the reason for which a slowdown was taken; "" if none was

    @classmethod
    def of(cls, result: CheckResult) -> Self:
        gate, baseline = result.gate("slowdown"), result.baseline
        return cls(
            at=result.at,
            verdict=result.verdict,
            candidate=result.candidate.name,
            candidate_sha256=result.candidate.sha256,
            baseline=None if baseline is None else baseline.name,
            baseline_sha256=None if baseline is None else baseline.sha256,
            fingerprint_sha256=result.fingerprint_sha256,
            percentile=result.percentile,
            candidate_ms=result.candidate.latency.ms,
            slowdown=None if gate is None else gate.value,
            accepted=result.accepted,
        )

    @classmethod
    def from_json(cls, record: Any) -> Self:
        """The inverse of `vars`; ValueError for anything else."""
        if not isinstance(record, dict) or set(record) != _KEYS:
            raise ValueError("it lacks fields, or has unknown ones")
        for name in _KEYS - {"candidate_ms", "slowdown"}:
            absent = name in ("baseline", "baseline_sha256") and record[name] is None
            if not absent and not isinstance(record[name], str):
                raise ValueError(f"{name} is no text")
        if not _is_positive(record["candidate_ms"]):
            raise ValueError("candidate_ms is no latency")
        slowdown = record["slowdown"]
        if slowdown is not None and not (_is_number(slowdown) and slowdown > -1):
            raise ValueError("slowdown is no share")
        return cls(**record)

    @property
    def series(self) -> tuple[str | None, str, str]:
        """Checks that share it are comparable over time."""
        return self.baseline_sha256, self.fingerprint_sha256, self.percentile

    @property
    def level(self) -> float:
        """What a series is made of: log ratio to the baseline, or else log ms."""
        if self.slowdown is not None:
            return math.log1p(self.slowdown)
        return math.log(self.candidate_ms)


def read_history(path: Path | None) -> tuple[Entry, ...]:
    """All past checks, the oldest first; DeployError names the line that is damaged."""
    if path is None or not path.exists():
        return ()
    with disk_faults_told(f"cannot read {path.name}", path):
        text = path.read_text(encoding="utf-8", errors="replace")
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            entries.append(Entry.from_json(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            raise DeployError(
                f"line {number} of {path.name} is damaged: {error}",
                fix="remove that line, or give another file as --history",
            ) from error
    return tuple(entries)


def append_history(path: Path, entry: Entry) -> None:
    """Add one line; two checks at a time do not mix theirs."""
    with disk_faults_told(f"cannot write {path.name}", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        append_line(path, json.dumps(vars(entry), sort_keys=True))


def accepted_level(past: Sequence[Entry], series: tuple[str | None, str, str]) -> tuple[float, str]:
    """The slowdown against this baseline that was accepted last, and a note; 0.0 if none was."""
    accepted = [entry for entry in past if entry.series == series and entry.accepted]
    if not accepted or accepted[-1].slowdown is None:
        return 0.0, ""
    last = accepted[-1]
    assert last.slowdown is not None
    note = (
        f"a slowdown of {last.slowdown:.1%} against this baseline was accepted on {last.at[:10]}: "
        f"{last.accepted}"
    )
    return max(0.0, last.slowdown), note


def step_notes(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Steps in the series that the last of these checks belongs to, in words."""
    if not entries:
        return ()
    alike = [entry for entry in entries if entry.series == entries[-1].series]
    return tuple(
        f"history: {math.expm1(step.change):+.1%} since {alike[step.index].at[:10]} "
        f"({alike[step.index].candidate}, check {step.index + 1} of {len(alike)})"
        for step in steps([entry.level for entry in alike])
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0
