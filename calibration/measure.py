"""Measuring candidates: cut, build, time against the dense anchor, store; resumes by itself."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import onnx

from calibration.candidates import Slicer
from calibration.database import LatencyDatabase
from calibration.errors import CandidateLostError, MeasuringError
from calibration.phases import TIMING, Phases
from calibration.rows import Row
from calibration.widths import WidthVector
from targets.base import Images, Target
from targets.fingerprint import Fingerprint
from targets.loads import LOADS, Loads, over_loads
from targets.timing import Comparison, compare

MEMORY = Path("/dev/shm")  # files there never reach a disk
SCRATCH = "wgates-candidate-"  # how their folders begin: of nothing else, since they are removed
MOST_LOST = 5  # candidates in a row
WORTH, LONGEST_S = 2.0, 10.0  # timed for so many times what preparing took; at most so long
ROOM = 6  # free space there, in sizes of the dense graph: others build, too


@dataclass(frozen=True)
class Bench:
    """One target with its dense anchor, ready to time candidates of one network."""

    target: Target
    slicer: Slicer
    anchor: Path  # the dense network's engine
    batches: tuple[Images, ...] = ()  # training images, for targets that take ranges from them
    keep_fp32: frozenset[str] = frozenset()  # nodes that the final engine keeps in fp32, too
    phases: Phases = field(default_factory=Phases)
    companions: int = 0  # processes of ours that hold the GPU meanwhile, idle

    @property
    def skeleton_sha256(self) -> str:
        return self.slicer.sha256

    @property
    def fingerprint(self) -> Fingerprint:
        return self.target.fingerprint()

    def compare(
        self, widths: WidthVector, *, precision: float = 0.01, limit_s: float = 3.0
    ) -> Loads:
        """Cut, build and time one width vector, interleaved with the anchor; both loaded anew.

        It is timed for `limit_s` at most; for longer where building and loading took long, too: a
        candidate that dear had better be known well.
        """
        # the engine must be a file: what is timed is what would be shipped
        with scratch(self.slicer.skeleton.onnx_bytes) as folder:
            path = folder / f"candidate{self.target.engine_suffix}"
            shares = limit_s / LOADS, self.build(widths, path) / LOADS
            timed = partial(self._timed, path, precision, *shares)
            return over_loads(timed, precision=precision, limit_s=limit_s)

    def build(self, widths: WidthVector, engine: Path) -> float:
        """Cut one width vector and build its engine there; the seconds that the build took."""
        with self.phases.spent_on("slice"):
            model = self.slicer.at_widths(widths)
        with self.phases.spent_on("build") as build:
            self.target.build(model, engine, self.batches, keep_fp32=self._kept(widths, model))
        return build.seconds

    def _timed(self, path: Path, precision: float, limit_s: float, built_s: float) -> Comparison:
        """One load of both engines; its share of the rounds that the precision takes."""
        with ExitStack() as loaded:
            with self.phases.spent_on("load") as load:
                engine = loaded.enter_context(self.target.load(path))
                anchor = loaded.enter_context(self.target.load(self.anchor))
            dear_s = WORTH * (built_s + load.seconds)
            limit_s = max(limit_s, min(dear_s, LONGEST_S / LOADS))
            with self.phases.spent_on(TIMING):
                wish = precision * math.sqrt(LOADS)
                found = compare(engine, anchor, precision=wish, limit_s=limit_s)
                return found.beside(self.companions)

    def _kept(self, widths: WidthVector, model: bytes) -> frozenset[str]:
        """Of the nodes to keep in fp32, those that did not go with a branch."""
        if not self.keep_fp32 or not self.slicer.skeleton.groups.removed(widths):
            return self.keep_fp32
        return self.keep_fp32 & {node.name for node in onnx.load_from_string(model).graph.node}

    def row(self, widths: WidthVector, *, precision: float = 0.01) -> Row:
        """Measure one width vector, as it is stored."""
        found = self.compare(widths, precision=precision)
        return Row.of(self.slicer.sha256, self.target.fingerprint(), widths, found)


@contextmanager
def scratch(graph: bytes) -> Iterator[Path]:
    """A folder for one candidate of a dense graph; nobody else removes it while it is locked.

    In memory, where there is enough.
    """
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM * len(graph)
    parent = MEMORY if roomy and _is_writable(MEMORY) else None
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=parent) as name:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def abandoned(parent: Path = MEMORY, *, older_than_s: float = 0.0) -> Iterator[Path]:
    """Folders of candidates that no process holds; each is locked while the caller looks at it."""
    for folder in parent.glob(f"{SCRATCH}*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # gone already, another user's, or no folder
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(descriptor).st_mtime >= older_than_s:
                yield folder
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def remove_abandoned(*parents: Path, older_than_s: float = 2.0) -> int:
    """Remove folders of processes that were killed, which would keep memory for ever; how many.

    One that is young may be about to be locked. `parents`: wherever `scratch` puts them.
    """
    removed = 0
    for parent in parents or (MEMORY, Path(tempfile.gettempdir())):
        for folder in abandoned(parent, older_than_s=older_than_s):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


class Measurer(Protocol):
    """What measures candidates one by one: a bench, here or in another process."""

    @property
    def skeleton_sha256(self) -> str: ...
    @property
    def fingerprint(self) -> Fingerprint: ...
    @property
    def phases(self) -> Phases: ...
    def row(self, widths: WidthVector, *, precision: float = ...) -> Row: ...


def measure_all(
    measurer: Measurer,
    database: LatencyDatabase,
    wanted: Sequence[WidthVector],
    *,
    precision: float = 0.01,
    on_done: Callable[[int, int], None] | None = None,
) -> None:
    """Measure what the database lacks, in order; each result is stored as it arrives.

    A candidate that takes the measuring process along is marked and never tried again;
    MeasuringError after several in a row.
    """
    skeleton, fingerprint = measurer.skeleton_sha256, measurer.fingerprint
    lost = database.lost(skeleton, fingerprint)
    in_a_row = 0
    for index, widths in enumerate(wanted):
        if widths not in lost and not database.has(skeleton, fingerprint, widths):
            try:
                row = measurer.row(widths, precision=precision)
            except CandidateLostError as error:
                database.mark_lost(skeleton, fingerprint, widths, error.message)
                in_a_row += 1
                if in_a_row == MOST_LOST:
                    raise _hopeless(in_a_row, error) from error
            else:
                in_a_row = 0
                with measurer.phases.spent_on("store"):
                    database.add(row)
        if on_done is not None:
            on_done(index + 1, len(wanted))


def _hopeless(count: int, last: CandidateLostError) -> MeasuringError:
    return MeasuringError(
        f"{count} candidates in a row were lost; the last {last.message}",
        fix="try the dense network first: pipeline build; or allow more time: --watchdog MINUTES",
    )
