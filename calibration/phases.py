"""Where the wall time of a calibration goes, phase by phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

TIMING = "time"  # the phase of timed inference, its warm-up included


class Phases:
    """Seconds spent in each named phase since it was made; the rest is "other"."""

    def __init__(self) -> None:
        self._began = perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def spent_on(self, phase: str) -> Iterator[None]:
        """Add the time of this block to a phase; blocks do not nest."""
        began = perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + perf_counter() - began

    def wall_s(self) -> float:
        """Seconds since it was made."""
        return perf_counter() - self._began

    def to_json(self) -> dict[str, Any]:
        """Wall seconds, and each phase's seconds and share of them."""
        wall_s = self.wall_s()
        seconds = {**self._seconds, "other": max(0.0, wall_s - sum(self._seconds.values()))}
        return {
            "wall_s": wall_s,
            "seconds": seconds,
            "share": {phase: spent / wall_s for phase, spent in seconds.items()},
        }
