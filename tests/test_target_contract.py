"""What every target promises, whichever runtime it wraps.

REQUIRE_TARGETS=ort-cpu,fake turns the skip of a target that is not available into a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from targets import known_targets, load_target
from targets.base import Engine, Images, Logits, Target, TargetOptions
from targets.errors import BuildError, EngineError

from .targets.tiny_onnx import CLASSES, IMAGE, images, tiny_model

BATCH = 2
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "int8": 1e-1}  # of the largest logit
CYCLES = 50
MAX_GROWTH_MB = 20.0  # allocators keep some; a leak of 50 engines and their pools is more

ALL = sorted(known_targets(include_hidden=True))


def required() -> set[str]:
    return {name.strip() for name in os.environ.get("REQUIRE_TARGETS", "").split(",")} - {""}


def available(name: str, options: TargetOptions) -> Target:
    """The target, or a skip that gives every reason; a failure where it is required."""
    target = load_target(name, options)
    reasons = target.is_available()
    if reasons:
        message = f"{name} is not available: {'; '.join(reasons)}"
        if name in required():
            pytest.fail(message)
        pytest.skip(message)
    return target


@pytest.fixture(params=ALL)
def target(request: pytest.FixtureRequest) -> Target:
    return available(request.param, TargetOptions(batch=BATCH, threads=1))


@pytest.fixture
def built(target: Target, tmp_path: Path) -> Path:
    out = tmp_path / f"tiny{target.engine_suffix}"
    # int8 targets take their ranges from these; the others let them be
    return target.build(tiny_model(), out, [images(BATCH)]).engine


@pytest.fixture
def engine(target: Target, built: Path) -> Iterator[Engine]:
    with target.load(built) as loaded:
        yield loaded


def reference(batch: Images) -> Logits:
    """Logits of the tiny network by ONNX's own reference, one batch at a time."""
    evaluator = ReferenceEvaluator(onnx.load_from_string(tiny_model(batch=1)))
    return np.concatenate([evaluator.run(None, {"images": image[None]})[0] for image in batch])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_required_targets_are_known() -> None:
    assert required() <= set(ALL)


def test_an_unavailable_target_skips_with_all_reasons_or_fails_where_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("targets.fake.FakeTarget.is_available", lambda self: ("no A", "no B"))
    monkeypatch.setenv("REQUIRE_TARGETS", "")
    with pytest.raises(pytest.skip.Exception, match="no A; no B"):
        available("fake", TargetOptions())
    monkeypatch.setenv("REQUIRE_TARGETS", "ort-cpu, fake")
    with pytest.raises(pytest.fail.Exception, match="no A; no B"):
        available("fake", TargetOptions())


def test_it_says_what_it_is(target: Target) -> None:
    assert target.name in ALL
    assert target.precision in TOLERANCE
    assert target.engine_suffix.startswith(".")
    assert target.channel_multiple >= 1
    assert target.channel_block >= 1


@pytest.mark.parametrize("n", [1, BATCH, BATCH + 1, 3 * BATCH])
def test_logits_are_those_of_the_reference(target: Target, engine: Engine, n: int) -> None:
    batch = images(n)
    logits, expected = engine.infer(batch), reference(batch)
    assert logits.shape == (n, CLASSES)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() <= TOLERANCE[target.precision] * np.abs(expected).max()


def test_logits_do_not_depend_on_the_neighbours_in_a_batch(engine: Engine) -> None:
    batch = images(3)
    assert np.allclose(engine.infer(batch)[2:], engine.infer(batch[2:]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, *IMAGE), (1, 4, 8, 8), (1, 3, 8), (1, 3, 9, 8)])
def test_other_shapes_are_refused(engine: Engine, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match=r"takes images \(n, 3, 8, 8\)"):
        engine.infer(np.zeros(shape, np.float32))


def test_every_call_takes_time(engine: Engine) -> None:
    engine.call()
    samples = engine.time_ms(7)
    assert len(samples) == 7
    assert (samples.wall_ns > 0).all()


def test_a_wider_network_takes_longer(target: Target, engine: Engine, tmp_path: Path) -> None:
    # an asynchronous call that nobody waits for takes the same time whatever the width
    wide = target.build(
        tiny_model(width=512), tmp_path / f"wide{target.engine_suffix}", [images(BATCH)]
    )
    with target.load(wide.engine) as slow:
        slow.time_ms(3), engine.time_ms(3)
        assert np.median(slow.time_ms(9).ms) > 2 * np.median(engine.time_ms(9).ms)


def test_a_closed_engine_stays_closed(engine: Engine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.infer(images(1))
    with pytest.raises(EngineError, match="closed"):
        engine.time_ms(1)


def test_loading_and_closing_leaks_nothing(target: Target, built: Path) -> None:
    def cycle() -> None:
        with target.load(built) as engine:
            engine.infer(images(1))

    for _ in range(5):  # pays for what the runtime keeps for the life of the process
        cycle()
    files, memory_mb = open_files(), resident_mb()
    for _ in range(CYCLES):
        cycle()
    assert open_files() <= files + 1
    assert resident_mb() <= memory_mb + MAX_GROWTH_MB


def test_fingerprints_are_stable(target: Target) -> None:
    again = load_target(target.name, target.options)
    assert again.fingerprint() == target.fingerprint()
    assert again.fingerprint().digest() == target.fingerprint().digest()
    assert target.fingerprint().target == target.name
    assert target.fingerprint().precision == target.precision


def test_options_are_part_of_the_fingerprint(target: Target) -> None:
    threads = load_target(target.name, TargetOptions(batch=BATCH, threads=2)).fingerprint()
    assert target.fingerprint().differences(threads) == ("threads: 1 != 2",)
    batch = load_target(target.name, TargetOptions(batch=BATCH + 1, threads=1)).fingerprint()
    assert f"batch: {BATCH} != {BATCH + 1}" in target.fingerprint().differences(batch)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_engine_is_refused(target: Target, built: Path, share: float) -> None:
    content = built.read_bytes()
    built.write_bytes(content[: int(share * len(content))])
    with pytest.raises(EngineError):
        target.load(built)


@pytest.mark.parametrize("content", [b"garbage" * 100, b"{}", tiny_model()])
def test_a_foreign_engine_is_refused(target: Target, tmp_path: Path, content: bytes) -> None:
    foreign = tmp_path / f"foreign{target.engine_suffix}"
    foreign.write_bytes(content)
    with pytest.raises(EngineError, match="foreign"):
        target.load(foreign)


def test_a_foreign_model_is_refused_and_leaves_no_file(target: Target, tmp_path: Path) -> None:
    with pytest.raises(BuildError):
        target.build(b"garbage" * 100, tmp_path / f"out{target.engine_suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_rebuilt_engine_computes_the_same(target: Target, engine: Engine, tmp_path: Path) -> None:
    again = target.build(tiny_model(), tmp_path / f"again{target.engine_suffix}", [images(BATCH)])
    with target.load(again.engine) as rebuilt:
        assert np.array_equal(rebuilt.infer(images(3)), engine.infer(images(3)))
