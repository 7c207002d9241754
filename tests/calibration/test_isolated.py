"""Candidates that crash or hang the process that measures them, as runtimes do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from calibration.database import LatencyDatabase
from calibration.errors import CandidateLostError, MeasuringError
from calibration.isolated import IsolatedBench
from calibration.jobs import Setup
from calibration.measure import MOST_LOST, measure_all
from calibration.phases import Phases
from calibration.widths import WidthVector
from targets import load_target
from targets.base import TargetOptions

from .chain import BATCH, chain
from .test_measure import known_ns

SKELETON = chain((32, 48))
OPTIONS = TargetOptions(batch=BATCH)
CRASH, HANG, ONCE, LEAVE, FAIL = 8, 16, 24, 40, 48  # of the second group, what a build does

FAULTY = f"""
import multiprocessing, onnx, os, signal, sys, time
from pathlib import Path
import calibration.jobs
from targets.errors import BuildError
from targets.fake import FakeTarget

def widths(model):
    graph = onnx.load_from_string(model).graph
    channels = {{weight.name: weight.dims[0] for weight in graph.initializer}}
    return channels["conv0.weight"], channels["conv1.weight"]

if multiprocessing.parent_process() is not None:  # as if the runtime held a GPU there
    calibration.jobs.contexts_here = lambda: 1

class Faulty(FakeTarget):
    name = "faulty"

    def build(self, onnx, out, batches=(), *, keep_fp32=()):
        first, second = widths(onnx)
        (Path(__file__).parent / "pid").write_text(str(os.getpid()))
        once = Path(__file__).parent / "once"
        if second == {CRASH} or (second == {ONCE} and not once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        if second == {HANG}:
            time.sleep(1000)
        if second == {LEAVE}:
            os._exit(3)
        if second == {FAIL} and first == 8:
            raise BuildError("the runtime refuses this one", fix="none")
        return super().build(onnx, out, batches, keep_fp32=keep_fp32)
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a target; the child finds it as the parent does."""
    info = tmp_path / "faulty_target-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-target\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[wgates.targets]\nfaulty = faulty_target:Faulty\n")
    (tmp_path / "faulty_target.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faulty_target", raising=False)
    return tmp_path


@pytest.fixture
def setup(faulty: Path) -> Setup:
    return Setup(SKELETON, "faulty", OPTIONS, load_target("faulty", OPTIONS).fingerprint())


@pytest.fixture
def isolated(setup: Setup) -> Iterator[IsolatedBench]:
    with IsolatedBench(setup, Phases(), limit_s=30) as made:
        yield made


def widths(second: int, first: int = 16) -> WidthVector:
    return WidthVector(SKELETON.groups.names, (first, second))


def law(kept: tuple[int, ...]) -> float:
    return known_ns(SKELETON, kept) / known_ns(SKELETON, (32, 48))


def test_measures_what_a_bench_measures(isolated: IsolatedBench) -> None:
    row = isolated.row(widths(32))
    assert row.ratio == pytest.approx(law((16, 32)), rel=1e-3)
    assert row.fingerprint == isolated.fingerprint
    spent = isolated.phases.to_json()["seconds"]
    assert {"slice", "build", "load", "time", "start", "wait"} <= spent.keys()
    assert spent["time"] > 0


def test_a_crash_costs_only_its_candidate(isolated: IsolatedBench, faulty: Path) -> None:
    isolated.row(widths(32))
    before = (faulty / "pid").read_text()
    with pytest.raises(CandidateLostError, match="ended the measuring process by SIGSEGV"):
        isolated.row(widths(CRASH))
    assert isolated.row(widths(32)).ratio == pytest.approx(law((16, 32)), rel=1e-3)
    assert (faulty / "pid").read_text() != before


def test_what_the_process_holds_on_a_gpu_is_known(isolated: IsolatedBench) -> None:
    assert isolated.contexts == 0
    isolated.row(widths(32))
    assert isolated.contexts == 1
    with pytest.raises(CandidateLostError):
        isolated.row(widths(CRASH))
    assert isolated.contexts == 0


def test_a_crash_that_is_not_the_candidates_is_tried_again(isolated: IsolatedBench) -> None:
    assert isolated.row(widths(ONCE)).ratio == pytest.approx(law((16, ONCE)), rel=1e-3)


def test_a_process_that_died_while_nobody_asked_is_started_again(
    isolated: IsolatedBench, faulty: Path
) -> None:
    isolated.row(widths(32))
    killed = int((faulty / "pid").read_text())
    os.kill(killed, signal.SIGKILL)
    assert isolated._process is not None
    isolated._process.join()
    assert isolated.row(widths(32)).ratio == pytest.approx(law((16, 32)), rel=1e-3)
    assert int((faulty / "pid").read_text()) != killed


def test_a_hang_is_ended(setup: Setup, faulty: Path) -> None:
    with IsolatedBench(setup, Phases(), limit_s=30) as made:
        made.row(widths(32))
        made.limit_s = 2.0
        started = time.perf_counter()
        with pytest.raises(CandidateLostError, match=r"took longer than 0\.0333333 minutes"):
            made.row(widths(HANG))
        assert time.perf_counter() - started < 25
        hung = int((faulty / "pid").read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(hung, 0)


def test_a_process_that_leaves_by_itself_is_an_error(isolated: IsolatedBench) -> None:
    with pytest.raises(MeasuringError, match="ended with code 3") as caught:
        isolated.row(widths(LEAVE))
    assert not isinstance(caught.value, CandidateLostError)


def test_an_engine_is_built_there_and_not_timed(isolated: IsolatedBench, tmp_path: Path) -> None:
    engine = tmp_path / "plan.json"
    isolated.build(widths(32), engine)
    with load_target("faulty", OPTIONS).load(engine) as loaded:
        found_ms = loaded.time_ms(1).median_ms()
    assert found_ms == pytest.approx(known_ns(SKELETON, (16, 32)) / 1e6, rel=1e-4)
    assert "time" not in isolated.phases.seconds
    with pytest.raises(CandidateLostError, match="ended the measuring process by SIGSEGV"):
        isolated.build(widths(CRASH), engine)
    with pytest.raises(MeasuringError, match="the runtime refuses this one"):
        isolated.build(widths(FAIL, first=8), engine)


def test_an_expected_failure_is_told_in_its_own_words(isolated: IsolatedBench) -> None:
    with pytest.raises(MeasuringError, match="the runtime refuses this one"):
        isolated.row(widths(FAIL, first=8))


def test_lost_candidates_are_marked_and_never_tried_again(
    isolated: IsolatedBench, tmp_path: Path
) -> None:
    wanted = [widths(second) for second in (32, CRASH, ONCE)]
    with LatencyDatabase(tmp_path / "latency.sqlite") as database:
        measure_all(isolated, database, wanted)
        known = database.records(SKELETON.sha256, isolated.fingerprint)
        assert [record.widths for record in known] == [wanted[0], wanted[2]]
        lost = database.lost(SKELETON.sha256, isolated.fingerprint)
        assert list(lost) == [wanted[1]]
        assert "SIGSEGV" in lost[wanted[1]]
        began = isolated.phases.seconds["start"]
        measure_all(isolated, database, wanted)
        assert isolated.phases.seconds["start"] == began


def test_a_target_that_always_crashes_is_given_up(isolated: IsolatedBench, tmp_path: Path) -> None:
    wanted = [widths(CRASH, first=first) for first in range(8, 9 + MOST_LOST)]
    with (
        LatencyDatabase(tmp_path / "latency.sqlite") as database,
        pytest.raises(MeasuringError, match=f"{MOST_LOST} candidates in a row") as caught,
    ):
        measure_all(isolated, database, wanted)
    assert "--watchdog" in caught.value.fix


def test_the_child_ends_with_a_parent_that_is_killed(faulty: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    script = """
        import sys, time
        sys.path[:0] = [{root!r}, {faulty!r}]
        from calibration.isolated import IsolatedBench
        from calibration.phases import Phases
        from tests.calibration.test_isolated import SKELETON, OPTIONS, Setup, load_target, widths
        if __name__ == "__main__":
            fingerprint = load_target("faulty", OPTIONS).fingerprint()
            setup = Setup(SKELETON, "faulty", OPTIONS, fingerprint)
            made = IsolatedBench(setup, Phases(), limit_s=60)
            made.row(widths(32))
            print("ready", flush=True)
            time.sleep(60)
    """
    file = faulty / "parent.py"
    file.write_text(textwrap.dedent(script).format(root=str(root), faulty=str(faulty)))
    parent = subprocess.Popen([sys.executable, file], stdout=subprocess.PIPE, cwd=faulty)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    child = int((faulty / "pid").read_text())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not _is_running(child):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child outlived its parent")


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
