from __future__ import annotations

import sys
from pathlib import Path

import pytest

from calibration.candidates import Slicer
from calibration.database import LatencyDatabase
from calibration.errors import FleetError
from calibration.isolated import IsolatedBench
from calibration.measure import Bench
from calibration.rows import Row
from calibration.sampling import first_widths
from calibration.widths import WidthVector
from pipeline.run import Context, Run
from pipeline.stages import STAGES
from pipeline.stages.measuring import devices, measurements
from targets.base import TargetOptions
from targets.fake import FakeTarget
from tests.calibration.chain import BATCH, chain

SKELETON = chain((32, 48))
WANTED = first_widths(SKELETON.groups, 8, 6, seed=0)


class Silent:
    def progress(self, label: str, done: int, total: int, note: str = "") -> None: ...

    def say(self, text: str) -> None: ...


def context(folder: Path, **options: object) -> Context:
    run = Run(folder, STAGES)
    run.resolve(options)
    (folder / "partial").mkdir(exist_ok=True)
    return Context(run, STAGES["calibrate"], folder / "partial", Silent())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    target = FakeTarget(TargetOptions(batch=BATCH))
    anchor = target.build(SKELETON.onnx_bytes, tmp_path / "anchor.json").engine
    return Bench(target, Slicer(SKELETON), anchor)


def calibrated(made: Context, bench: Bench, count: int) -> list[int]:
    """Measure as the stage does; how many networks the run's own database then has."""
    own = made.partial / "latency.sqlite"
    with measurements(made, own, SKELETON.sha256) as database, devices(made, bench) as here:
        here.measure(database, WANTED[:count])
    with LatencyDatabase(own) as database:
        return [WANTED.index(row.widths) for row in database.rows(SKELETON.sha256)]


def test_a_run_alone_keeps_its_own(tmp_path: Path, bench: Bench) -> None:
    assert calibrated(context(tmp_path / "run"), bench, 3) == [0, 1, 2]


def test_runs_with_one_database_do_not_measure_twice(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[WidthVector] = []
    row = IsolatedBench.row

    def counted(self: IsolatedBench, widths: WidthVector, **named: float) -> Row:
        asked.append(widths)
        return row(self, widths, **named)

    monkeypatch.setattr(IsolatedBench, "row", counted)
    shared = tmp_path / "shared.sqlite"
    assert calibrated(context(tmp_path / "one", database=shared), bench, 4) == [0, 1, 2, 3]
    assert len(asked) == 4
    assert calibrated(context(tmp_path / "two", database=shared), bench, 6) == [0, 1, 2, 3, 4, 5]
    assert len(asked) == 6


def test_what_a_run_had_before_goes_into_the_shared_database(tmp_path: Path, bench: Bench) -> None:
    folder, shared = tmp_path / "run", tmp_path / "shared.sqlite"
    calibrated(context(folder), bench, 2)
    calibrated(context(folder, database=shared), bench, 3)
    with LatencyDatabase(shared) as database:
        assert len(database.rows(SKELETON.sha256)) == 3


def test_a_fleet_is_asked_where_one_is_named(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with (
        pytest.raises(FleetError, match="a fleet needs Ray"),
        devices(context(tmp_path / "run", fleet="127.0.0.1:1"), bench),
    ):
        pass
