"""Where the wall time of a calibration goes, phase by phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

TIMING = "time"  # the phase of timed inference, its warm-up included


class Block:
    """A block of code that is being timed."""

    def __init__(self) -> None:
        self.parts: Mapping[str, float] = {}
        self.seconds = 0.0  # once it has ended

    def was(self, parts: Mapping[str, float]) -> None:
        """What the block consisted of, in seconds: another process did the work."""
        self.parts = parts


class Phases:
    """Seconds spent in each named phase since it was made; the rest is "other"."""

    def __init__(self) -> None:
        self._began = perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def spent_on(self, phase: str) -> Iterator[Block]:
        """Add the time of this block to a phase, less its `parts`; blocks do not nest."""
        block, began = Block(), perf_counter()
        try:
            yield block
        finally:
            block.seconds = perf_counter() - began
            left = max(0.0, block.seconds - sum(block.parts.values()))
            for name, seconds in {**block.parts, phase: left}.items():
                self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def wall_s(self) -> float:
        """Seconds since it was made."""
        return perf_counter() - self._began

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds by phase so far, without the rest."""
        return dict(self._seconds)

    def to_json(self) -> dict[str, Any]:
        """Wall seconds, and each phase's seconds and share of them."""
        wall_s = self.wall_s()
        seconds = {**self._seconds, "other": max(0.0, wall_s - sum(self._seconds.values()))}
        return {
            "wall_s": wall_s,
            "seconds": seconds,
            "share": {phase: spent / wall_s for phase, spent in seconds.items()},
        }
