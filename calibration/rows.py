"""One measurement with all its evidence, as it is stored, moved between machines and merged."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from calibration.widths import WidthVector, whole
from targets.fingerprint import Fingerprint
from targets.loads import Loads
from targets.samples import Samples
from targets.timing import Comparison


@dataclass(frozen=True)
class Row:
    """A measured width vector; ValueError if its numbers cannot be those of a measurement."""

    skeleton: str  # SHA-256 (hex) of the dense graph
    fingerprint: Fingerprint
    widths: WidthVector
    ratio: float  # candidate over anchor
    ratio_ci95: tuple[float, float]
    candidate: Samples
    anchor: Samples
    calls_per_round: int
    doubts: tuple[str, ...]
    measured_at: str  # ISO 8601, UTC

    def __post_init__(self) -> None:
        low, high = self.ratio_ci95
        if not (math.isfinite(self.ratio) and math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"ratio {self.ratio} in {low} to {high} is not finite")
        if not (self.ratio > 0 and low <= self.ratio <= high):
            raise ValueError(f"ratio {self.ratio} is not positive and within {low} to {high}")
        if not len(self.candidate) or not len(self.anchor):
            raise ValueError("there are no timed calls")
        whole(self.calls_per_round, 1)
        datetime.fromisoformat(self.measured_at)

    @classmethod
    def of(
        cls,
        skeleton: str,
        fingerprint: Fingerprint,
        widths: WidthVector,
        comparison: Comparison | Loads,
    ) -> Self:
        """A comparison made just now."""
        return cls(
            skeleton,
            fingerprint,
            widths,
            comparison.ratio,
            comparison.ratio_ci95,
            comparison.candidate,
            comparison.anchor,
            comparison.calls_per_round,
            comparison.doubts(),
            datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @property
    def anchor_ms(self) -> float:
        """The anchor's median of clean calls."""
        return self.anchor.median_ms()

    def stored(self) -> dict[str, Any]:
        """Texts, numbers and bytes by column name; the fingerprint by its digest."""
        return {
            "skeleton": self.skeleton,
            "fingerprint": self.fingerprint.digest(),
            "widths": widths_key(self.widths),
            "ratio": self.ratio,
            "low": self.ratio_ci95[0],
            "high": self.ratio_ci95[1],
            "candidate": self.candidate.to_bytes(),
            "anchor": self.anchor.to_bytes(),
            "calls_per_round": self.calls_per_round,
            "doubts": json.dumps(self.doubts),
            "measured_at": self.measured_at,
        }

    @classmethod
    def from_stored(cls, values: dict[str, Any], fingerprint: Fingerprint) -> Self:
        """The inverse of `stored`; ValueError if a value is damaged."""
        return cls(
            skeleton=values["skeleton"],
            fingerprint=fingerprint,
            widths=widths_of(values["widths"]),
            ratio=values["ratio"],
            ratio_ci95=(values["low"], values["high"]),
            candidate=Samples.from_bytes(values["candidate"]),
            anchor=Samples.from_bytes(values["anchor"]),
            calls_per_round=values["calls_per_round"],
            doubts=_texts(json.loads(values["doubts"])),
            measured_at=values["measured_at"],
        )


COLUMNS = (
    *("skeleton", "fingerprint", "widths", "ratio", "low", "high", "candidate", "anchor"),
    *("calls_per_round", "doubts", "measured_at"),
)


def widths_key(widths: WidthVector) -> str:
    """The text that a width vector is stored and found under."""
    return json.dumps(dict(zip(widths.groups, widths.kept, strict=True)))


def widths_of(key: str) -> WidthVector:
    """The inverse of `widths_key`; ValueError if the text is anything else."""
    kept = json.loads(key)
    if not isinstance(kept, dict):
        raise ValueError(f"widths {key[:40]} do not name groups")
    return WidthVector(tuple(kept), tuple(whole(width) for width in kept.values()))


def _texts(document: Any) -> tuple[str, ...]:
    if not isinstance(document, list) or not all(isinstance(text, str) for text in document):
        raise ValueError("doubts are not a list of texts")
    return tuple(document)
