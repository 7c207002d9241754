"""Measuring candidates: cut, build, time against the dense anchor, store; resumes by itself."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calibration.candidates import Slicer
from calibration.database import LatencyDatabase
from calibration.phases import TIMING, Phases
from calibration.widths import WidthVector
from targets.base import Engine, Images, Target
from targets.timing import Comparison, compare

MEMORY = Path("/dev/shm")  # files there never reach a disk
ROOM = 6  # free space there, in sizes of the dense graph: others build, too


@dataclass(frozen=True)
class Bench:
    """One target with its loaded dense anchor, ready to time candidates of one network."""

    target: Target
    slicer: Slicer
    anchor: Engine
    batches: tuple[Images, ...] = ()  # training images, for targets that take ranges from them
    keep_fp32: frozenset[str] = frozenset()  # nodes that the final engine keeps in fp32, too
    phases: Phases = field(default_factory=Phases)

    def compare(
        self, widths: WidthVector, *, precision: float = 0.01, limit_s: float = 3.0
    ) -> Comparison:
        """Cut, build and time one width vector, interleaved with the anchor."""
        spent_on = self.phases.spent_on
        with spent_on("slice"):
            onnx = self.slicer.at_widths(widths)
        # the engine must be a file: what is timed is what would be shipped
        with tempfile.TemporaryDirectory(prefix="wgates-", dir=self._folder()) as folder:
            path = Path(folder) / f"candidate{self.target.engine_suffix}"
            with spent_on("build"):
                self.target.build(onnx, path, self.batches, keep_fp32=self.keep_fp32)
            with spent_on("load"):
                engine = self.target.load(path)
            with engine, spent_on(TIMING):
                return compare(engine, self.anchor, precision=precision, limit_s=limit_s)

    def _folder(self) -> Path | None:
        """Memory that looks like a folder, where there is enough; None: the usual place."""
        needed = ROOM * len(self.slicer.skeleton.onnx_bytes)
        roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= needed
        return MEMORY if roomy and _is_writable(MEMORY) else None


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def measure_all(
    bench: Bench,
    database: LatencyDatabase,
    wanted: Sequence[WidthVector],
    *,
    precision: float = 0.01,
    on_done: Callable[[int, int], None] | None = None,
) -> None:
    """Measure what the database lacks, in order; each result is stored as it arrives."""
    skeleton, fingerprint = bench.slicer.sha256, bench.target.fingerprint()
    for index, widths in enumerate(wanted):
        if not database.has(skeleton, fingerprint, widths):
            comparison = bench.compare(widths, precision=precision)
            with bench.phases.spent_on("store"):
                database.add(skeleton, fingerprint, widths, comparison)
        if on_done is not None:
            on_done(index + 1, len(wanted))
