"""What every target promises, whichever runtime it wraps.

REQUIRE_TARGETS=ort-cpu,fake turns the skip of a target that is not available into a failure.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from _pytest.mark import ParameterSet
from onnx.reference import ReferenceEvaluator

from targets import known_targets, load_target
from targets.base import Engine, Images, Logits, Target, TargetOptions
from targets.errors import BuildError, EngineError, TargetUnavailableError

from .targets.digits_net import Digits, digits
from .targets.tiny_onnx import CLASSES, IMAGE, images, tiny_model

BATCH = 2
CALIBRATION = 16  # images for int8: from two of them the ranges are too narrow for others
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "int8": 1e-1}  # of the largest logit
MIN_AGREEMENT = {"fp32": 1.0, "fp16": 0.99, "int8": 0.97}  # of the labels with torch's
CYCLES = 200
MAX_GROWTH_MB = 20.0  # allocators keep some; a leak of 200 engines and their pools is more

ALL = sorted(known_targets(include_hidden=True))
ON_GPU = ("trt-", "ort-cuda")


def required() -> set[str]:
    return {name.strip() for name in os.environ.get("REQUIRE_TARGETS", "").split(",")} - {""}


def options_for(name: str, **changes: int) -> TargetOptions:
    """Batch 2 and one thread, where the target has threads."""
    return options_of(name, {"batch": BATCH, "threads": 1} | changes)


def options_of(name: str, wanted: dict[str, int]) -> TargetOptions:
    takes = type(load_target(name, TargetOptions())).takes
    return TargetOptions(**{key: value for key, value in wanted.items() if key in takes})


def available(name: str, *, to_build: bool = False) -> Target:
    """The target, or a skip that gives every reason; a failure where it is required."""
    target = load_target(name, options_for(name))
    reasons = target.is_buildable() if to_build else target.is_available()
    if reasons:
        message = f"{name} is not available: {'; '.join(reasons)}"
        # a builder that runs elsewhere is required to build, not to run
        if name in required() and (to_build or not builds_only(target)):
            pytest.fail(message)
        pytest.skip(message)
    return target


def builds_only(target: Target) -> bool:
    return not target.is_buildable() and bool(target.is_available())


def marked(names: Iterable[str]) -> list[ParameterSet]:
    return [
        pytest.param(name, marks=[pytest.mark.gpu] if name.startswith(ON_GPU) else [])
        for name in names
    ]


def is_here(name: str, *, to_build: bool = False) -> bool:
    """Whether a target can be tested; one that is required is, and fails if it cannot be."""
    target = load_target(name, options_for(name))
    reasons = target.is_buildable() if to_build else target.is_available()
    return not reasons or (name in required() and (to_build or not builds_only(target)))


# others skip once, in `test_it_runs_here`, and not in each test again
RUNNERS = marked(name for name in ALL if is_here(name))
BUILDERS = [name for name in ALL if is_here(name, to_build=True)]


@pytest.fixture(params=RUNNERS)
def target(request: pytest.FixtureRequest) -> Target:
    """A target that runs here."""
    return available(request.param)


@pytest.fixture(params=BUILDERS)
def builder(request: pytest.FixtureRequest) -> Target:
    """A target that builds here, wherever its engines run."""
    return available(request.param, to_build=True)


@pytest.fixture
def built(target: Target, tmp_path: Path) -> Path:
    return build(target, tmp_path)


def build(target: Target, folder: Path, model: bytes | None = None) -> Path:
    out = folder / f"tiny{target.engine_suffix}"
    # int8 targets take their ranges from these; the others let them be
    return target.build(model or tiny_model(), out, [images(CALIBRATION)]).engine


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


@pytest.mark.parametrize("name", marked(ALL))
def test_it_runs_here(name: str) -> None:
    """Skips with every reason where it does not."""
    assert available(name).fingerprint().target == name


def device_mb(name: str) -> float:
    """What is taken of the GPU's memory; 0 for targets that run on the CPU."""
    if not name.startswith(ON_GPU):
        return 0.0
    runtime = importlib.import_module("cuda.bindings.runtime")
    error, free, total = runtime.cudaMemGetInfo()
    assert error == runtime.cudaError_t.cudaSuccess
    return float(total - free) / 2**20


def test_required_targets_are_known() -> None:
    assert required() <= set(ALL)


def test_an_unavailable_target_skips_with_all_reasons_or_fails_where_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("targets.fake.FakeTarget.is_available", lambda self: ("no A", "no B"))
    monkeypatch.setenv("REQUIRE_TARGETS", "")
    with pytest.raises(pytest.skip.Exception, match="no A; no B"):
        available("fake")
    monkeypatch.setenv("REQUIRE_TARGETS", "ort-cpu, fake")
    with pytest.raises(pytest.fail.Exception, match="no A; no B"):
        available("fake")


@pytest.mark.parametrize("name", ALL)
def test_it_says_what_it_is_wherever_it_is(name: str) -> None:
    target = load_target(name, TargetOptions())
    assert target.name == name
    assert target.precision in TOLERANCE
    assert target.engine_suffix.startswith(".")
    assert target.channel_multiple >= 1
    assert target.channel_block >= 1
    assert type(target).__doc__
    for reason in (*target.is_available(), *target.is_buildable()):
        assert len(reason) > 10


@pytest.mark.parametrize("name", ALL)
def test_options_that_it_does_not_take_are_refused_by_name(name: str) -> None:
    takes = load_target(name, TargetOptions()).takes
    foreign = {
        "spinning": False,
        "device_time": True,
        "cuda_graph": True,
        "compute_capabilities": ("sm80",),
    }
    for key in foreign.keys() - takes:
        with pytest.raises(TargetUnavailableError, match=f"--{key.replace('_', '-')}"):
            load_target(name, TargetOptions(**{key: foreign[key]}))  # type: ignore[arg-type]


@pytest.fixture
def trained(target: Target) -> Digits:
    return digits(target.options.batch)


def test_logits_are_those_of_torch_on_real_images(
    target: Target, trained: Digits, tmp_path: Path
) -> None:
    out = tmp_path / f"digits{target.engine_suffix}"
    record = target.build(trained.onnx, out, np.split(trained.train, 8))
    with target.load(record.engine) as engine:
        logits = engine.infer(trained.images)
    assert logits.shape == trained.logits.shape
    assert logits.dtype == np.float32
    worst = np.abs(logits - trained.logits).max() / np.abs(trained.logits).max()
    assert worst <= TOLERANCE[target.precision]
    agreement = (logits.argmax(1) == trained.logits.argmax(1)).mean()
    assert agreement >= MIN_AGREEMENT[target.precision]
    # nothing in this network needs fp32
    assert record.kept_fp32 == ()


@pytest.mark.parametrize("name", [name for name in BUILDERS if name.endswith("-int8")])
def test_int8_needs_images_and_keeps_what_it_is_told_in_fp32(name: str, tmp_path: Path) -> None:
    builder = available(name, to_build=True)
    trained = digits(BATCH)
    batches = np.split(trained.train, 8)
    out = tmp_path / f"digits{builder.engine_suffix}"
    with pytest.raises(BuildError, match="images"):
        builder.build(trained.onnx, out)
    order = builder.fallback_order(trained.onnx, batches)
    assert {"Conv_0", "Conv_1", "Conv_2"} <= set(order)
    assert builder.build(trained.onnx, out, batches, keep_fp32=order[:2]).kept_fp32 == tuple(
        sorted(order[:2], key=NODES.index)
    )
    with pytest.raises(BuildError, match="Conv_99"):
        builder.build(trained.onnx, out, batches, keep_fp32=["Conv_99"])


NODES = [node.name for node in onnx.load_from_string(digits(BATCH).onnx).graph.node]


@pytest.mark.parametrize("domain", ["", "com.example"])
def test_an_unsupported_operator_is_refused_with_its_node(
    builder: Target, tmp_path: Path, domain: str
) -> None:
    model = onnx.load_from_string(tiny_model())
    culprit = next(node for node in model.graph.node if node.op_type == "Relu")
    culprit.op_type, culprit.name, culprit.domain = "Frobnicate", "stem/frob", domain
    if domain:
        model.opset_import.add(domain=domain, version=1)
    with pytest.raises(BuildError, match="stem/frob") as raised:
        builder.build(
            model.SerializeToString(),
            tmp_path / f"out{builder.engine_suffix}",
            [images(CALIBRATION)],
        )
    assert "Frobnicate" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


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
        tiny_model(width=512), tmp_path / f"wide{target.engine_suffix}", [images(CALIBRATION)]
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
    files, memory_mb, gpu_mb = open_files(), resident_mb(), device_mb(target.name)
    for _ in range(CYCLES):
        cycle()
    assert open_files() <= files + 1
    assert resident_mb() <= memory_mb + MAX_GROWTH_MB
    assert device_mb(target.name) <= gpu_mb + MAX_GROWTH_MB


def test_fingerprints_are_stable(target: Target) -> None:
    again = load_target(target.name, target.options)
    assert again.fingerprint() == target.fingerprint()
    assert again.fingerprint().digest() == target.fingerprint().digest()
    assert target.fingerprint().target == target.name
    assert target.fingerprint().precision == target.precision


def test_options_are_part_of_the_fingerprint(target: Target) -> None:
    if "threads" in target.takes:
        threads = load_target(target.name, options_for(target.name, threads=2)).fingerprint()
        assert target.fingerprint().differences(threads) == ("threads: 1 != 2",)
    batch = load_target(target.name, options_for(target.name, batch=BATCH + 1)).fingerprint()
    assert f"batch: {BATCH} != {BATCH + 1}" in target.fingerprint().differences(batch)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_engine_is_refused(builder: Target, tmp_path: Path, share: float) -> None:
    built = build(builder, tmp_path)
    content = built.read_bytes()
    built.write_bytes(content[: int(share * len(content))])
    with pytest.raises(EngineError):
        builder.load(built)


@pytest.mark.parametrize("content", [b"garbage" * 100, b"{}", tiny_model()])
def test_a_foreign_engine_is_refused(builder: Target, tmp_path: Path, content: bytes) -> None:
    foreign = tmp_path / f"foreign{builder.engine_suffix}"
    foreign.write_bytes(content)
    with pytest.raises(EngineError, match="foreign"):
        builder.load(foreign)


@pytest.mark.parametrize("content", [b"garbage" * 100, b"", tiny_model()[:200]])
def test_a_damaged_model_is_refused_and_leaves_no_file(
    builder: Target, tmp_path: Path, content: bytes
) -> None:
    with pytest.raises(BuildError):
        builder.build(content, tmp_path / f"out{builder.engine_suffix}", [images(CALIBRATION)])
    assert list(tmp_path.iterdir()) == []


def test_an_engine_of_another_precision_or_runtime_is_refused(
    builder: Target, tmp_path: Path
) -> None:
    built = build(builder, tmp_path)
    for other in ALL:
        stranger = load_target(other, options_for(other))
        if other == builder.name or stranger.is_buildable():
            continue
        with pytest.raises(EngineError):
            stranger.load(built)


def test_a_rebuilt_engine_computes_the_same(target: Target, engine: Engine, tmp_path: Path) -> None:
    again = target.build(
        tiny_model(), tmp_path / f"again{target.engine_suffix}", [images(CALIBRATION)]
    )
    with target.load(again.engine) as rebuilt:
        assert np.array_equal(rebuilt.infer(images(3)), engine.infer(images(3)))
