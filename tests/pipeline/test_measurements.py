"""`pipeline calibrate --import/--export` on run folders made by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from calibration.database import LatencyDatabase
from calibration.rows import Row
from calibration.widths import WidthVector
from pipeline.cli import main
from pipeline.stages import STAGES
from tests.calibration.chain import chain
from tests.calibration.test_database import FINGERPRINT, comparison

pytest.importorskip("pyarrow", reason="Parquet was NOT tested: pip install 'wgates[parquet]'")

SKELETON = chain((32, 48))
OTHER = chain((32, 40))


def calibrate(folder: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["calibrate", str(folder), *map(str, arguments)])


def run_folder(folder: Path) -> Path:
    (folder / "trace").mkdir(parents=True)
    SKELETON.save(folder / "trace")
    return folder


def measured(path: Path, *kept: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with LatencyDatabase(path) as database:
        for width in kept:
            widths = WidthVector(SKELETON.groups.names, (width, 48))
            database.add(Row.of(SKELETON.sha256, FINGERPRINT, widths, comparison(width / 32)))
            database.add(Row.of(OTHER.sha256, FINGERPRINT, widths, comparison(width / 32)))
    return path


def kept_in(path: Path) -> list[int]:
    with LatencyDatabase(path) as database:
        return [row.widths.kept[0] for row in database.rows(SKELETON.sha256)]


def test_measurements_move_from_run_to_run(tmp_path: Path) -> None:
    here, there = run_folder(tmp_path / "here"), run_folder(tmp_path / "there")
    file = tmp_path / "measured.parquet"
    measured(here / "calibrate" / "latency.sqlite", 8, 16)
    measured(here / "calibrate.partial" / "latency.sqlite", 16, 24)
    result = calibrate(here, "--export", file)
    assert result.stdout == f"calibrate: 3 measurements written to {file}\n"
    result = calibrate(there, "--import", file)
    assert result.stdout == "calibrate: 3 measurements taken over, 0 known before\n"
    assert kept_in(there / "calibrate" / "latency.sqlite") == [8, 16, 24]
    result = calibrate(there, "--import", file)
    assert result.stdout == "calibrate: 0 measurements taken over, 3 known before\n"


def test_calibrate_is_done_anew_only_after_something_new(tmp_path: Path) -> None:
    here, there = run_folder(tmp_path / "here"), run_folder(tmp_path / "there")
    file, record = tmp_path / "measured.parquet", there / "calibrate" / "stage.json"
    measured(here / "calibrate" / "latency.sqlite", 8)
    measured(there / "calibrate" / "latency.sqlite", 8)
    measured(there / "calibrate.partial" / "latency.sqlite", 16)
    record.write_text(json.dumps({}))
    calibrate(here, "--export", file)
    calibrate(there, "--import", file)
    assert not record.exists()  # what a killed calibration has measured lacked it
    assert kept_in(there / "calibrate.partial" / "latency.sqlite") == [16, 8]
    record.write_text(json.dumps({}))
    assert calibrate(there, "--import", file).exit_code == 0
    assert record.exists()


def test_a_shared_database_is_read_and_filled_too(tmp_path: Path) -> None:
    here, shared = run_folder(tmp_path / "here"), tmp_path / "shared.sqlite"
    file = tmp_path / "measured.parquet"
    measured(shared, 8, 16)
    assert "2 measurements" in calibrate(here, "--database", shared, "--export", file).stdout
    shutil.move(shared, tmp_path / "old.sqlite")
    measured(shared, 24)
    assert "2 measurements taken" in calibrate(here, "--import", file).stdout
    assert kept_in(shared) == [24, 8, 16]


@pytest.mark.parametrize(
    ("flag", "words"),
    [("--export", "has no measurements yet"), ("--import", "cannot read measurements")],
)
def test_what_is_not_there_is_told(tmp_path: Path, flag: str, words: str) -> None:
    here = run_folder(tmp_path / "here")
    result = calibrate(here, flag, tmp_path / "none.parquet")
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.splitlines()[1].startswith("  fix: ")


def test_without_a_trace_nothing_can_be_checked(tmp_path: Path) -> None:
    result = calibrate(tmp_path / "empty", "--import", tmp_path / "none.parquet")
    assert result.exit_code == 1
    assert "run: pipeline trace" in result.stderr


def test_where_it_is_measured_makes_no_stage_stale(tmp_path: Path) -> None:
    from pipeline.run import Run

    run = Run(tmp_path, STAGES)
    run.resolve({})
    before = run._key(STAGES["calibrate"])
    (tmp_path / "shared.sqlite").write_bytes(b"")
    run.resolve({"database": tmp_path / "shared.sqlite", "fleet": "10.0.0.1:6379"})
    assert run._key(STAGES["calibrate"]) == before
    run.resolve({"samples": 7})
    assert run._key(STAGES["calibrate"]) != before
