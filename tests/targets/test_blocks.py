from __future__ import annotations

import dataclasses
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from targets import blocks
from targets.base import TargetOptions
from targets.blocks import BlockRun, measure_blocks
from targets.errors import EngineError, FingerprintError
from targets.fingerprint import Fingerprint, cpu_fingerprint
from targets.ort.cpu import OrtCpu
from targets.samples import Samples

from .conftest import FakeClock, ScriptedEngine
from .tiny_onnx import tiny_model

ONE_THREAD = TargetOptions(batch=2, threads=1)
FINGERPRINT = cpu_fingerprint("t", "fp32", runtime="r", batch=1, threads=1, settings=())


def block(*wall_ms: float) -> Samples:
    wall_ns = np.array([round(ms * 1e6) for ms in wall_ms], dtype=np.int64)
    return Samples(wall_ns, wall_ns, np.zeros(len(wall_ms), np.int64))


def run_of(**medians_ms: list[float]) -> BlockRun:
    """Blocks of three calls around each median."""
    made = {n: tuple(block(m, 0.99 * m, 1.01 * m) for m in ms) for n, ms in medians_ms.items()}
    return BlockRun(FINGERPRINT, made)


def test_estimates_come_from_block_medians() -> None:
    run = run_of(engine=[1.0, 2.0, 9.0], dense=[2.0, 4.0, 36.0])
    assert run.processes == 3
    assert run.median_ms("engine") == 2.0
    low, high = run.ci95_ms("engine")
    assert (low, high) == (1.0, 9.0)
    assert run.ratio("engine", "dense") == (0.5, (0.25, 0.5))
    assert len(run.pooled_ms("engine")) == 9


def test_p99_pools_samples_and_needs_299() -> None:
    enough = BlockRun(FINGERPRINT, {"e": (block(*[1.0] * 200), block(*[2.0] * 99))})
    assert enough.percentile_ms("e", 99) == 2.0
    short = BlockRun(FINGERPRINT, {"e": (block(*[1.0] * 200), block(*[2.0] * 98))})
    with pytest.raises(ValueError, match="there are 298"):
        short.percentile_ms("e", 99)


def test_blocks_state_their_doubts() -> None:
    assert run_of(engine=[1.0] * 5).doubts() == ()
    few, spread = run_of(engine=[1.0, 1.1, 1.0]).doubts()
    assert few == "only 3 of at least 5 processes ran"
    assert spread == "engine: the medians of its blocks range over 10%"


def test_blocks_round_trip_through_json() -> None:
    run = run_of(engine=[1.0, 2.0], dense=[3.0, 4.0])
    again = BlockRun.from_json(json.loads(json.dumps(run.to_json())))
    assert again.fingerprint == run.fingerprint
    assert again.blocks == run.blocks


def test_unpaired_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="one block a process"):
        run_of(engine=[1.0], dense=[1.0, 2.0])
    with pytest.raises(ValueError, match="at least one engine"):
        BlockRun(FINGERPRINT, {})


def test_blocks_of_another_fingerprint_do_not_join() -> None:
    other = BlockRun(dataclasses.replace(FINGERPRINT, threads=2), {"e": (block(1.0),)})
    with pytest.raises(FingerprintError, match="threads: 1 != 2"):
        run_of(e=[1.0]).joined(other)


def test_turns_are_abba_and_fill_their_time(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    class Here(ExitStack):
        """Stands for a fresh process: serves a scripted engine in this one."""

        def __init__(self, module: str, *, name: str) -> None:
            super().__init__()
            self.served = blocks._Served(self)

        def tell(self, message: dict[str, Any]) -> None:
            name = Path(message["load"]["path"]).name
            engine = ScriptedEngine(name, clock, log, duration_ns=lambda _: 10_000_000)
            self.served._engine = engine

        def answer(self, limit_s: float) -> Any:
            return FINGERPRINT.to_json()

        def ask(self, message: dict[str, Any], limit_s: float) -> Any:
            return self.served.answer(message)

    monkeypatch.setattr(blocks, "FreshProcess", Here)
    monkeypatch.setattr(blocks, "warm_up", lambda engine: 0)
    engines = {name: Path(name) for name in "AB"}
    run = measure_blocks(
        FINGERPRINT.target, TargetOptions(), engines, processes=1, seconds_per_block=0.4
    )
    assert "".join(log) == "AB" + "ABBAABBA"  # first a look at how long calls take
    assert len(run.blocks["A"][0]) == 4 * 10  # those that refill the caches do not count
    assert list(blocks.turns(["a", "b", "c"], 2)) == ["a", "b", "c", "c", "b", "a"]


@pytest.mark.parametrize(("ours", "foreign"), [(0, [1, 0, 2]), (1, [0, 0, 1])])
def test_of_the_gpu_s_other_processes_ours_are_not_foreign(
    ours: int, foreign: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = dataclasses.replace(block(1.0, 1.0, 1.0), gpu_foreign=np.array([2, 1, 3]))

    class Told(ExitStack):
        """Stands for a fresh process that shares its GPU."""

        def __init__(self, module: str, *, name: str) -> None:
            super().__init__()

        def tell(self, message: dict[str, Any]) -> None:
            assert "load" in message

        def answer(self, limit_s: float) -> Any:
            return FINGERPRINT.to_json()

        def ask(self, message: dict[str, Any], limit_s: float) -> Any:
            return seen.to_json() if "tell" in message else None

    monkeypatch.setattr(blocks, "FreshProcess", Told)
    monkeypatch.setattr(blocks, "contexts_here", lambda: ours)
    engines = {name: Path(name) for name in "AB"}
    run = measure_blocks(
        FINGERPRINT.target, TargetOptions(), engines, processes=1, seconds_per_block=0.1
    )
    for (found,) in run.blocks.values():
        assert found.gpu_foreign is not None
        assert found.gpu_foreign.tolist() == foreign


def test_an_engine_is_timed_alone_in_its_process(ort_engine: Path) -> None:
    described = {"target": "ort-cpu", "options": dataclasses.asdict(ONE_THREAD)}
    with ExitStack() as stack:
        served = blocks._Served(stack)
        fingerprint = served.answer({"load": described | {"path": str(ort_engine)}})
        assert Fingerprint.from_json(fingerprint) == OrtCpu(ONE_THREAD).fingerprint()
        assert served.answer({"warm up": 20.0}) is None
        calls = served._turn.timed
        assert calls > 20  # a call takes far less than a millisecond
        for _ in range(2):
            assert served.answer({"time": None}) is None
        assert len(Samples.from_json(served.answer({"tell": None}))) == 2 * calls


def test_fresh_processes_measure_every_engine(ort_engine: Path, tmp_path: Path) -> None:
    wide = OrtCpu(ONE_THREAD).build(tiny_model(width=256), tmp_path / "wide.onnx").engine
    seen: list[int] = []

    def stop(run: BlockRun) -> bool:
        seen.append(run.processes)
        return run.processes == 2

    run = measure_blocks(
        "ort-cpu",
        ONE_THREAD,
        {"narrow": ort_engine, "wide": wide},
        processes=4,
        seconds_per_block=0.05,
        stop=stop,
    )
    assert seen == [1, 2]
    assert run.processes == 2
    assert run.fingerprint == OrtCpu(ONE_THREAD).fingerprint()
    assert run.ratio("narrow", "wide")[0] < 0.8
    for name in ("narrow", "wide"):
        assert 0.01 < sum(part.ms.sum() for part in run.blocks[name]) / 1e3 < 2.0


def test_the_child_inherits_the_affinity_mask(ort_engine: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        run = measure_blocks(
            "ort-cpu",
            TargetOptions(batch=2),
            {"tiny": ort_engine},
            processes=1,
            seconds_per_block=0.01,
        )
    finally:
        os.sched_setaffinity(0, before)
    assert (run.fingerprint.affinity, run.fingerprint.threads) == (1, 1)


def test_a_failing_child_says_why_in_one_line(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"garbage")
    with pytest.raises(EngineError, match=r"timing process failed: cannot load .*damaged\.onnx"):
        measure_blocks("ort-cpu", ONE_THREAD, {"e": damaged}, processes=1, seconds_per_block=0.01)


def test_a_child_that_never_ends_is_given_up(
    ort_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "LOAD_LIMIT_S", 0.01)
    with pytest.raises(EngineError, match="did not answer within"):
        measure_blocks(
            "ort-cpu", ONE_THREAD, {"e": ort_engine}, processes=1, seconds_per_block=0.001
        )


def test_no_process_or_no_engine_is_refused(ort_engine: Path) -> None:
    for engines, processes in (({}, 1), ({"e": ort_engine}, 0)):
        with pytest.raises(ValueError, match="at least one"):
            measure_blocks("ort-cpu", ONE_THREAD, engines, processes=processes, seconds_per_block=1)
