from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from calibration.candidates import Slicer
from calibration.database import LatencyDatabase
from calibration.measure import (
    LONGEST_S,
    SCRATCH,
    Bench,
    abandoned,
    measure_all,
    remove_abandoned,
    scratch,
)
from calibration.sampling import first_widths
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector
from targets.base import BuildRecord, Engine, Images, TargetOptions
from targets.fake import MACS_PER_NS, OVERHEAD_NS, FakeTarget
from targets.loads import LOADS
from targets.timing import Comparison, compare

from .chain import BATCH, chain


class CountingTarget(FakeTarget):
    """Counts its builds and fails from the given one on, as a killed run would."""

    def __init__(self, *, builds_until_killed: int | None = None, build_s: float = 0.0) -> None:
        super().__init__(TargetOptions(batch=BATCH))
        self.builds, self.build_s = 0, build_s
        self.limit = builds_until_killed

    def build(
        self,
        onnx: bytes | Path,
        out: Path,
        batches: Iterable[Images] = (),
        *,
        keep_fp32: Collection[str] = (),
    ) -> BuildRecord:
        if self.builds == self.limit:
            raise KeyboardInterrupt
        self.builds += 1
        time.sleep(self.build_s)
        return super().build(onnx, out, batches, keep_fp32=keep_fp32)


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return chain((32, 48))


def bench(skeleton: Skeleton, target: CountingTarget, folder: Path) -> Bench:
    anchor = FakeTarget(target.options).build(skeleton.onnx_bytes, folder / "anchor.json").engine
    return Bench(target, Slicer(skeleton), anchor)


def known_ns(skeleton: Skeleton, kept: tuple[int, ...]) -> float:
    """The fake target's law on the chain: channels count in blocks of 8."""
    first, second = (-(-width // 8) * 8 for width in kept)
    pixels = 8 * 8 * 9 * BATCH
    macs = pixels * (8 * first + first * second) + BATCH * 8 * second  # 3 inputs, 5 classes: 8
    return OVERHEAD_NS + macs / MACS_PER_NS


def test_a_candidate_is_cut_built_and_timed(skeleton: Skeleton, tmp_path: Path) -> None:
    ready = bench(skeleton, CountingTarget(), tmp_path)
    found = ready.compare(WidthVector(skeleton.groups.names, (16, 24)))
    assert len(found.parts) == LOADS
    expected = known_ns(skeleton, (16, 24)) / known_ns(skeleton, (32, 48))
    assert found.ratio == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that each comparison might have taken; none takes long."""
    found: list[float] = []

    def noted(candidate: Engine, anchor: Engine, *, precision: float, limit_s: float) -> Comparison:
        found.append(limit_s)
        return compare(candidate, anchor, precision=precision, limit_s=0.2)

    monkeypatch.setattr("calibration.measure.compare", noted)
    return found


@pytest.mark.parametrize(
    ("build_s", "limit_s", "least", "most"),
    [(0.0, 0.4, 0.4, 0.4), (0.5, 0.4, 1.0, 3.0), (0.5, 12.0, 12.0, 12.0)],
)
def test_what_is_dear_to_prepare_is_timed_for_longer(
    skeleton: Skeleton,
    tmp_path: Path,
    limits: list[float],
    build_s: float,
    limit_s: float,
    least: float,
    most: float,
) -> None:
    ready = bench(skeleton, CountingTarget(build_s=build_s), tmp_path)
    ready.compare(WidthVector(skeleton.groups.names, (16, 24)), limit_s=limit_s)
    assert len(limits) == LOADS
    assert least <= sum(limits) <= most


def test_no_candidate_is_timed_for_ever(
    skeleton: Skeleton, tmp_path: Path, limits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.measure.WORTH", 1e6)
    ready = bench(skeleton, CountingTarget(), tmp_path)
    ready.compare(WidthVector(skeleton.groups.names, (16, 24)))
    assert sum(limits) == LONGEST_S


def test_a_killed_run_loses_at_most_the_measurement_it_was_at(
    skeleton: Skeleton, tmp_path: Path
) -> None:
    wanted = first_widths(skeleton.groups, 8, 12, seed=0)
    killed, resumed = CountingTarget(builds_until_killed=5), CountingTarget()
    path = tmp_path / "latency.sqlite"
    with LatencyDatabase(path) as database, pytest.raises(KeyboardInterrupt):
        measure_all(bench(skeleton, killed, tmp_path), database, wanted)
    told: list[tuple[int, int]] = []
    ready = bench(skeleton, resumed, tmp_path)
    with LatencyDatabase(path) as database:
        measure_all(ready, database, wanted, on_done=lambda done, total: told.append((done, total)))
        records = database.records(skeleton.sha256, resumed.fingerprint())
    assert (killed.builds, resumed.builds) == (5, 7)
    assert told == [(done, 12) for done in range(1, 13)]
    assert [record.widths for record in records] == list(wanted)
    dense = known_ns(skeleton, (32, 48))
    for record in records:
        assert record.ratio == pytest.approx(known_ns(skeleton, record.widths.kept) / dense, 1e-3)
        assert record.anchor_ms == pytest.approx(dense / 1e6, rel=1e-3)


def test_what_is_measured_is_not_measured_again(skeleton: Skeleton, tmp_path: Path) -> None:
    wanted, target = first_widths(skeleton.groups, 8, 4, seed=0), CountingTarget()
    with LatencyDatabase(tmp_path / "latency.sqlite") as database:
        for _ in range(2):
            measure_all(bench(skeleton, target, tmp_path), database, wanted)
    assert target.builds == 4


class PlacedTarget(CountingTarget):
    """Remembers where its engines were built."""

    def __init__(self) -> None:
        super().__init__()
        self.folders: list[Path] = []

    def build(
        self,
        onnx: bytes | Path,
        out: Path,
        batches: Iterable[Images] = (),
        *,
        keep_fp32: Collection[str] = (),
    ) -> BuildRecord:
        self.folders.append(out.parent)
        return super().build(onnx, out, batches, keep_fp32=keep_fp32)


@pytest.mark.parametrize(("room", "in_memory"), [(10**9, True), (10, False)])
def test_engines_stay_in_memory_where_there_is_room(
    skeleton: Skeleton,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    in_memory: bool,
) -> None:
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir()
    disk.mkdir()
    monkeypatch.setattr("calibration.measure.MEMORY", memory)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=room))
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    target = PlacedTarget()
    ready = bench(skeleton, target, tmp_path)
    ready.compare(skeleton.groups.full())
    (folder,) = target.folders
    assert folder.parent == (memory if in_memory else disk)
    assert not list(memory.iterdir())
    assert not list(disk.iterdir())


def test_a_machine_without_such_a_folder_uses_the_disk(
    skeleton: Skeleton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.measure.MEMORY", tmp_path / "absent")
    target = PlacedTarget()
    ready = bench(skeleton, target, tmp_path)
    ready.compare(skeleton.groups.full())
    assert target.folders[0].is_relative_to(tempfile.gettempdir())
    assert {"slice", "build", "load", "time"} <= set(ready.phases.to_json()["seconds"])


def test_folders_of_killed_processes_are_removed_and_those_in_use_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.measure.MEMORY", tmp_path)
    left, other = tmp_path / f"{SCRATCH}left", tmp_path / "other"
    for folder in (left, other):
        folder.mkdir()
        (folder / "candidate.onnx").write_bytes(b"engine")
    with scratch(b"graph") as in_use:
        assert list(abandoned(tmp_path)) == [left]
        assert remove_abandoned(tmp_path) == 0  # too young
        assert remove_abandoned(tmp_path, older_than_s=0) == 1
        assert sorted(tmp_path.iterdir()) == sorted([in_use, other])
    assert list(tmp_path.iterdir()) == [other]
