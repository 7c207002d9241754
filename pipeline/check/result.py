"""What a check found: gates with their verdicts, and the evidence behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.check.course import Course

Verdict = Literal["pass", "regression", "inconclusive"]
Cause = Literal["", "noise", "doubts", "time limit", "margin", "machine"]  # why there is no verdict
SCHEMA = 1


@dataclass(frozen=True)
class Gate:
    """One question with its answer."""

    name: str  # "slowdown", "budget", "engine parity", "parity" or "accuracy"
    verdict: Verdict
    found: str  # value and interval in words
    limit: str
    value: float | None  # a share, or ms for the budget
    interval: tuple[float, float] | None
    cause: Cause = ""
    detail: str = ""  # of an inconclusive one: what was in the way, what could have been seen
    course: Course | None = None  # of one that was measured: process by process


@dataclass(frozen=True)
class Latency:
    """One engine's latency over the blocks, in ms, at the percentile that is judged."""

    ms: float  # median over the processes
    interval: tuple[float, float] | None
    block_ms: tuple[float, ...]  # one for each process
    calls: int


@dataclass(frozen=True)
class Subject:
    """What was compared, by name and digest."""

    name: str
    sha256: str
    latency: Latency


@dataclass(frozen=True)
class CheckResult:
    """A check as it is shown, written and remembered."""

    at: str  # ISO 8601, UTC
    target: str
    fingerprint: Mapping[str, Any]
    fingerprint_sha256: str
    percentile: str
    confidence: float  # of the intervals, over all looks together
    processes: int
    seconds: float
    candidate: Subject
    baseline: Subject | None
    gates: tuple[Gate, ...]
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    accepted: str = ""  # why a slowdown is taken
    schema: int = field(default=SCHEMA)

    @property
    def found(self) -> Verdict:
        """The worst of the gates, acceptance left aside."""
        return worst(gate.verdict for gate in self.gates)

    @property
    def verdict(self) -> Verdict:
        """The worst of the gates; a slowdown that was accepted counts as passed."""
        return worst(
            gate.verdict
            for gate in self.gates
            if not (self.accepted and gate.name == "slowdown" and gate.verdict == "regression")
        )

    @property
    def words(self) -> str:
        """The verdict in a word or two; one that an accepted slowdown leaves says so."""
        taken = self.accepted and self.verdict == "pass"
        return "pass (accepted)" if taken else self.verdict

    def gate(self, name: str) -> Gate | None:
        return next((gate for gate in self.gates if gate.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """A dict that `json.dumps` accepts."""
        return {"verdict": self.verdict, "found": self.found} | asdict(self)


def worst(verdicts: Any) -> Verdict:
    """A regression outweighs doubt, and doubt a pass; no gate at all is a pass."""
    order: Sequence[Verdict] = ("pass", "inconclusive", "regression")
    return max(verdicts, key=order.index, default="pass")
