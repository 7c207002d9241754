from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.database import SCHEMA, LatencyDatabase
from calibration.errors import DatabaseError
from calibration.rows import Row
from calibration.sampling import first_widths
from calibration.widths import WidthVector
from targets.base import TargetOptions
from targets.fake import FakeTarget
from targets.samples import Samples
from targets.timing import Comparison

from .chain import chain

SKELETON = "5" * 64
FINGERPRINT = FakeTarget(TargetOptions(batch=2)).fingerprint()
WRITERS, ROWS = 3, 25

WRITER = """
import sys, time
from pathlib import Path
from calibration.database import LatencyDatabase
from calibration.rows import Row
from tests.calibration.test_database import FINGERPRINT, ROWS, SKELETON, comparison, widths
folder, index = Path(sys.argv[1]), int(sys.argv[2])
(folder / f"ready{index}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
with LatencyDatabase(folder / "latency.sqlite") as database:
    for row in range(ROWS):
        width = widths(100 * index + row + 1)
        database.add(Row.of(SKELETON, FINGERPRINT, width, comparison(row + 1)))
"""


MEASURER = """
import sys
from pathlib import Path
from calibration.candidates import Slicer
from calibration.database import LatencyDatabase
from calibration.measure import Bench, measure_all
from calibration.sampling import first_widths
from targets.base import TargetOptions
from targets.fake import FakeTarget
from tests.calibration.chain import BATCH, chain
folder, skeleton, target = Path(sys.argv[1]), chain((32, 48)), FakeTarget(TargetOptions(batch=2))
target.build(skeleton.onnx_bytes, folder / "anchor.json")
with LatencyDatabase(folder / "latency.sqlite") as database:
    wanted = first_widths(skeleton.groups, 1, 100_000, seed=0)
    tell = lambda done, total: print(done, flush=True)
    bench = Bench(target, Slicer(skeleton), folder / "anchor.json")
    measure_all(bench, database, wanted, on_done=tell)
"""


def widths(kept: int) -> WidthVector:
    return WidthVector(("conv1", "conv0"), (kept, 8))  # not in alphabetical order


def samples(ms: float, n: int = 6, *, switches: int = 0) -> Samples:
    wall = np.round((ms + 0.001 * np.arange(n)) * 1e6).astype(np.int64)
    return Samples(wall, wall - 5, np.full(n, switches), steal_ticks=3, throttled_us=4)


def comparison(ratio: float) -> Comparison:
    return Comparison(
        ratio=ratio,
        ratio_ci95=(0.98 * ratio, 1.01 * ratio),
        round_ratios=(ratio,) * 5,
        candidate=samples(2 * ratio, switches=1),
        anchor=samples(2.0),
        calls_per_round=2,
        precision=0.05,
        warmup_calls=(4, 4),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "latency.sqlite"


@pytest.fixture
def database(path: Path) -> Iterator[LatencyDatabase]:
    with LatencyDatabase(path) as opened:
        yield opened


def test_a_row_is_there_for_others_as_soon_as_it_was_added(
    database: LatencyDatabase, path: Path
) -> None:
    for row in range(1, 4):
        database.add(Row.of(SKELETON, FINGERPRINT, widths(row), comparison(row)))
        with LatencyDatabase(path) as other:
            assert len(other.records(SKELETON, FINGERPRINT)) == row
            assert other.has(SKELETON, FINGERPRINT, widths(row))
            assert not other.has(SKELETON, FINGERPRINT, widths(row + 1))


def test_a_record_reads_back_equal(database: LatencyDatabase) -> None:
    made = comparison(0.5)
    database.add(Row.of(SKELETON, FINGERPRINT, widths(7), made))
    (record,) = database.records(SKELETON, FINGERPRINT)
    assert record.widths == widths(7)
    assert (record.ratio, record.ratio_ci95) == (0.5, (0.49, 0.505))
    assert record.anchor_ms == pytest.approx(2.0025)
    assert record.candidate_ms == pytest.approx(1.00125, rel=2e-3)
    assert record.doubts == made.doubts()
    assert record.doubts


def test_every_raw_sample_is_kept(database: LatencyDatabase, path: Path) -> None:
    made = comparison(0.5)
    database.add(Row.of(SKELETON, FINGERPRINT, widths(7), made))
    query = "SELECT candidate, anchor, calls_per_round FROM measurement"
    ((candidate, anchor, calls),) = sqlite3.connect(path).execute(query)
    assert Samples.from_bytes(candidate) == made.candidate
    assert Samples.from_bytes(anchor) == made.anchor
    assert calls == made.calls_per_round


def test_the_latest_of_two_measurements_counts(database: LatencyDatabase) -> None:
    for ratio in (0.5, 0.6):
        database.add(Row.of(SKELETON, FINGERPRINT, widths(7), comparison(ratio)))
    assert [r.ratio for r in database.records(SKELETON, FINGERPRINT)] == [0.6]


def test_records_come_oldest_first(database: LatencyDatabase) -> None:
    for kept in (9, 2, 5):
        database.add(Row.of(SKELETON, FINGERPRINT, widths(kept), comparison(1)))
    found = [record.widths.kept[0] for record in database.records(SKELETON, FINGERPRINT)]
    assert found == [9, 2, 5]


def test_other_fingerprints_and_networks_do_not_mix(database: LatencyDatabase) -> None:
    other = replace(FINGERPRINT, threads=FINGERPRINT.threads + 1)
    database.add(Row.of(SKELETON, FINGERPRINT, widths(7), comparison(0.5)))
    database.add(Row.of(SKELETON, other, widths(7), comparison(0.6)))
    database.add(Row.of("6" * 64, FINGERPRINT, widths(7), comparison(0.7)))
    assert [r.ratio for r in database.records(SKELETON, FINGERPRINT)] == [0.5]
    assert [r.ratio for r in database.records(SKELETON, other)] == [0.6]
    assert [r.ratio for r in database.records("6" * 64, FINGERPRINT)] == [0.7]
    assert not database.has("6" * 64, other, widths(7))


def test_processes_may_open_and_write_at_once(tmp_path: Path, path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(index)],
            cwd=root,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(WRITERS)
    ]
    while any(child.poll() is None for child in children):
        if all((tmp_path / f"ready{index}").exists() for index in range(WRITERS)):
            (tmp_path / "go").touch()
        try:
            children[0].wait(0.01)
        except subprocess.TimeoutExpired:
            continue
        break
    failures = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0] * WRITERS, failures
    with LatencyDatabase(path) as database:
        assert len(database.records(SKELETON, FINGERPRINT)) == WRITERS * ROWS


def test_a_killed_process_loses_at_most_the_measurement_it_was_at(
    tmp_path: Path, path: Path
) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", MEASURER, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(7):
            child.stdout.readline()
        child.kill()
        told = 7 + len(child.stdout.read().split())
    assert child.returncode == -signal.SIGKILL
    skeleton = chain((32, 48))
    with LatencyDatabase(path) as database:
        rows = database.rows(skeleton.sha256)
    assert told <= len(rows) <= told + 1
    assert [row.widths for row in rows] == list(first_widths(skeleton.groups, 1, len(rows), seed=0))


def test_merged_rows_are_kept_once_and_never_replace(database: LatencyDatabase) -> None:
    rows = [Row.of(SKELETON, FINGERPRINT, widths(kept), comparison(0.5)) for kept in (3, 4)]
    assert database.merge(rows) == 2
    other = [Row.of(SKELETON, FINGERPRINT, widths(kept), comparison(0.9)) for kept in (4, 5)]
    assert database.merge(other) == 1
    assert [record.ratio for record in database.records(SKELETON, FINGERPRINT)] == [0.5, 0.5, 0.9]
    assert database.rows(SKELETON) == (*rows, other[1])


def test_a_merge_that_fails_merges_nothing(database: LatencyDatabase) -> None:
    def rows() -> Iterator[Row]:
        yield Row.of(SKELETON, FINGERPRINT, widths(3), comparison(0.5))
        raise ValueError("cut short")

    with pytest.raises(DatabaseError, match="cut short"):
        database.merge(rows())
    assert database.rows(SKELETON) == ()


def test_a_refused_row_leaves_the_database_usable(database: LatencyDatabase) -> None:
    with pytest.raises(ValueError, match="not finite"):
        database.add(
            Row.of(SKELETON, FINGERPRINT, widths(7), replace(comparison(1), ratio=float("nan")))
        )
    database.add(Row.of(SKELETON, FINGERPRINT, widths(8), comparison(1)))
    assert [r.widths for r in database.records(SKELETON, FINGERPRINT)] == [widths(8)]


# files that are not ours


def refused(path: Path) -> DatabaseError:
    before = path.read_bytes()
    with pytest.raises(DatabaseError) as caught:
        LatencyDatabase(path)
    assert path.read_bytes() == before
    assert path.name in str(caught.value)
    assert "away to measure anew" in caught.value.fix
    return caught.value


def test_what_is_no_sqlite_file_is_refused(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be looked at" * 40)
    assert "not a database" in str(refused(path))


def test_a_newer_schema_is_refused(path: Path) -> None:
    LatencyDatabase(path).__exit__(None, None, None)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    error = refused(path)
    assert f"schema {SCHEMA + 1}, this version reads {SCHEMA}" in str(error)
    assert "upgrade wgates" in error.fix


@pytest.mark.parametrize("version", [1, SCHEMA - 1])
def test_an_older_schema_is_refused_with_words(path: Path, version: int) -> None:
    LatencyDatabase(path).__exit__(None, None, None)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    assert f"has schema {version}, whose networks were timed otherwise" in str(refused(path))


@pytest.mark.parametrize("version", [0, 1, SCHEMA])
def test_a_foreign_sqlite_file_is_refused_and_left_alone(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE customers (name TEXT)")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    assert "not a latency database" in str(refused(path))


def test_a_damaged_page_is_refused_when_read(path: Path) -> None:
    with LatencyDatabase(path) as database:
        for kept in range(1, 60):
            database.add(Row.of(SKELETON, FINGERPRINT, widths(kept), comparison(1)))
    data = bytearray(path.read_bytes())
    data[8192:] = b"\xa5" * (len(data) - 8192)
    path.write_bytes(data)
    with pytest.raises(DatabaseError), LatencyDatabase(path) as database:
        database.records(SKELETON, FINGERPRINT)


def test_damaged_samples_are_refused(database: LatencyDatabase, path: Path) -> None:
    database.add(Row.of(SKELETON, FINGERPRINT, widths(7), comparison(1)))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE measurement SET anchor = x'00'")
    connection.commit()
    connection.close()
    with pytest.raises(DatabaseError, match="stored samples"):
        database.records(SKELETON, FINGERPRINT)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="unable to open"):
        LatencyDatabase(tmp_path / "nowhere" / "latency.sqlite")
