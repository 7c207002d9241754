"""A run's measurements carried to and from other machines as one Parquet file; needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from calibration.database import LatencyDatabase
from calibration.exchange import Imported, export_rows, import_rows
from calibration.rows import Row
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector
from pipeline.errors import MissingInputError
from pipeline.files import disk_faults_told
from pipeline.options import CalibrateOptions
from pipeline.run import RECORD, Run
from targets.fingerprint import Fingerprint

DATABASE = "latency.sqlite"


def export_measurements(run: Run, out: Path) -> int:
    """Write every measurement of the run's network, under any fingerprint; how many they are."""
    skeleton = _skeleton(run)
    found = [path for path in _places(run) if path.exists()]
    if not found:
        raise MissingInputError(
            f"{run.folder} has no measurements yet", fix=f"run: pipeline calibrate {run.folder}"
        )
    rows: dict[tuple[Fingerprint, WidthVector], Row] = {}
    for path in found:
        with LatencyDatabase(path) as database:
            for row in database.rows(skeleton.sha256):
                rows.setdefault((row.fingerprint, row.widths), row)
    with disk_faults_told(f"cannot write {out.name}", out):
        export_rows(list(rows.values()), out)
    return len(rows)


def import_measurements(run: Run, file: Path) -> Imported:
    """Give the run what it lacks; calibrate then does its work anew, without measuring those."""
    skeleton, own = _skeleton(run), run.folder / "calibrate" / DATABASE
    own.parent.mkdir(exist_ok=True)
    places = [path for path in _places(run) if path.exists() or path == own]
    with ExitStack() as stack:
        databases = [stack.enter_context(LatencyDatabase(path)) for path in places]
        found = import_rows(file, databases, skeleton.sha256, skeleton.groups)
    if found.new:
        (own.parent / RECORD).unlink(missing_ok=True)
    return found


def _places(run: Run) -> Iterator[Path]:
    """Where measurements of the run may be: a shared database, the stage's own, a killed one's."""
    shared = run.options("calibrate", CalibrateOptions).database
    if shared is not None:
        yield shared
    yield run.folder / "calibrate" / DATABASE
    yield run.folder / "calibrate.partial" / DATABASE


def _skeleton(run: Run) -> Skeleton:
    run.read("trace", "groups.json")
    return Skeleton.open(run.folder / "trace")
