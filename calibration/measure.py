"""Measuring candidates: cut, build, time against the dense anchor, store; resumes by itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.candidates import Slicer
from calibration.database import LatencyDatabase
from calibration.widths import WidthVector
from targets.base import Engine, Images, Target
from targets.timing import Comparison, compare


@dataclass(frozen=True)
class Bench:
    """One target with its loaded dense anchor, ready to time candidates of one network."""

    target: Target
    slicer: Slicer
    anchor: Engine
    batches: tuple[Images, ...] = ()  # training images, for targets that take ranges from them
    keep_fp32: frozenset[str] = frozenset()  # nodes that the final engine keeps in fp32, too

    def compare(
        self, widths: WidthVector, *, precision: float = 0.01, limit_s: float = 3.0
    ) -> Comparison:
        """Cut, build and time one width vector, interleaved with the anchor."""
        # the engine must be a file: what is timed is what would be shipped
        with tempfile.TemporaryDirectory(prefix="wgates-") as folder:
            path = Path(folder) / f"candidate{self.target.engine_suffix}"
            self.target.build(
                self.slicer.at_widths(widths), path, self.batches, keep_fp32=self.keep_fp32
            )
            with self.target.load(path) as engine:
                return compare(engine, self.anchor, precision=precision, limit_s=limit_s)


def measure_all(
    bench: Bench,
    database: LatencyDatabase,
    wanted: Sequence[WidthVector],
    *,
    precision: float = 0.01,
    on_done: Callable[[int, int], None] | None = None,
) -> None:
    """Measure what the database lacks, in order; each result is stored as it arrives."""
    skeleton, fingerprint = bench.slicer.skeleton.sha256, bench.target.fingerprint()
    for index, widths in enumerate(wanted):
        if not database.has(skeleton, fingerprint, widths):
            comparison = bench.compare(widths, precision=precision)
            database.add(skeleton, fingerprint, widths, comparison)
        if on_done is not None:
            on_done(index + 1, len(wanted))
