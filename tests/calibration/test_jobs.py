from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.jobs import Answer, Job, Setup, Workplace
from calibration.widths import WidthVector
from targets.base import TargetOptions
from targets.fake import FakeEngine, FakeTarget
from targets.samples import Samples

from .chain import BATCH, chain
from .test_measure import known_ns

SKELETON = chain((32, 48))
OPTIONS = TargetOptions(batch=BATCH)
SETUP = Setup(SKELETON, "fake", OPTIONS, FakeTarget(OPTIONS).fingerprint())

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as if it were not installed
from importlib.metadata import version
import calibration.fleet
from calibration.jobs import Job, Setup, Workplace
from calibration.widths import WidthVector
from targets.base import TargetOptions
from targets.fake import FakeTarget
from tests.calibration.chain import BATCH, chain
skeleton, options = chain((32, 48)), TargetOptions(batch=BATCH)
setup = Setup(skeleton, "fake", options, FakeTarget(options).fingerprint())
widths = WidthVector(skeleton.groups.names, (16, 24))
answer = Workplace().perform(setup, Job(setup.digest, widths, 0.01, version("wgates")))
print(answer.row.ratio)
"""


def job(kept: tuple[int, int] = (16, 24), setup: Setup = SETUP, wgates: str = "0.1.0") -> Job:
    return Job(setup.digest, WidthVector(SKELETON.groups.names, kept), 0.01, wgates)


@pytest.fixture
def place() -> Iterator[Workplace]:
    made = Workplace()
    yield made
    made.close()


def law(kept: tuple[int, ...]) -> float:
    return known_ns(SKELETON, kept) / known_ns(SKELETON, (32, 48))


def test_a_job_is_measured_beside_the_anchor(place: Workplace) -> None:
    answer = place.perform(SETUP, job())
    assert answer.row is not None
    assert answer.row.ratio == pytest.approx(law((16, 24)), rel=1e-3)
    assert answer.row.widths.kept == (16, 24)
    assert answer.seconds > 0


def test_the_asker_s_hold_on_the_gpu_is_not_foreign(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = FakeEngine.time_ms

    def on_a_gpu(self: FakeEngine, n: int) -> Samples:
        return replace(timed(self, n), gpu_foreign=np.ones(n, np.int64))

    monkeypatch.setattr(FakeEngine, "time_ms", on_a_gpu)
    for companions, doubts in ((0, 2), (1, 0), (0, 2)):
        row = place.perform(SETUP, replace(job(), companions=companions)).row
        assert row is not None
        assert sum("foreign processes" in doubt for doubt in row.doubts) == doubts


def test_the_anchor_is_built_once_for_a_setup(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    build = FakeTarget.build

    def counted(self: FakeTarget, onnx: bytes, out: Path, *args: object, **named: object) -> object:
        built.append(out.stem)
        return build(self, onnx, out, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeTarget, "build", counted)
    other = replace(SETUP, keep_fp32=frozenset({"conv0"}))
    for setup in (SETUP, SETUP, other, SETUP):
        assert place.perform(setup, job(setup=setup)).row is not None
    assert built.count("anchor") == 3
    assert len(built) == 7


def test_another_device_says_in_which_field(place: Workplace) -> None:
    there = replace(SETUP, fingerprint=replace(SETUP.fingerprint, device="another", threads=64))
    answer = place.perform(there, job(setup=there))
    assert answer.row is None
    assert [text.partition(":")[0] for text in answer.differences] == ["device", "threads"]


def test_another_version_is_another_device(place: Workplace) -> None:
    answer = place.perform(SETUP, job(wgates="9.9"))
    assert answer == Answer(differences=("wgates: 9.9 != 0.1.0",))


def test_an_expected_failure_is_an_answer(place: Workplace) -> None:
    odd = replace(SETUP, options=TargetOptions(batch=BATCH, quantizer="x"))
    answer = place.perform(odd, job(setup=odd))
    assert answer.failure is not None
    message, fix = answer.failure
    assert message == "target fake has no option --quantizer"
    assert fix


def test_digests_tell_jobs_and_setups_apart() -> None:
    setups = [
        SETUP,
        replace(SETUP, skeleton=chain((32, 40))),
        replace(SETUP, options=TargetOptions(batch=BATCH, threads=1)),
        replace(SETUP, keep_fp32=frozenset({"conv0"})),
        replace(SETUP, fingerprint=replace(SETUP.fingerprint, driver="2")),
    ]
    assert len({setup.digest for setup in setups}) == len(setups)
    jobs = [job(), job((16, 32)), job(wgates="9"), job(setup=setups[1])]
    assert len({made.digest for made in jobs}) == len(jobs)
    assert job().digest == job().digest


def test_a_device_needs_no_torch() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(law((16, 24)), rel=1e-3)
