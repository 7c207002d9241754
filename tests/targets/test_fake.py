from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from targets.base import TargetOptions
from targets.errors import BuildError, EngineError
from targets.fake import MACS_PER_NS, OVERHEAD_NS, FakeTarget, latency_ns
from targets.timing import compare

from .tiny_onnx import tiny_model

PIXELS = 8 * 8


def known_ns(batch: int, padded_width: int) -> float:
    """The documented latency of the tiny network, written out."""
    first = PIXELS * 9 * 8 * padded_width  # 3 input channels count as 8
    second = PIXELS * 9 * padded_width * padded_width
    head = padded_width * 8  # 5 classes count as 8
    return OVERHEAD_NS + batch * (first + second + head) / MACS_PER_NS


@pytest.mark.parametrize(("width", "padded"), [(1, 8), (8, 8), (9, 16), (16, 16), (17, 24)])
def test_latency_is_the_documented_function(width: int, padded: int) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(tiny_model(width=width)))
    assert latency_ns(model) == known_ns(2, padded)


def test_depthwise_and_matmul_layers_count() -> None:
    def value(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    conv = helper.make_node("Conv", ["x", "w"], ["y"], group=12, kernel_shape=[1, 1])
    model = helper.make_model(
        helper.make_graph(
            [conv, helper.make_node("MatMul", ["f", "m"], ["z"])],
            "g",
            [value("x", 1, 12, 4, 4), value("f", 1, 12)],
            [value("y", 1, 12, 4, 4), value("z", 1, 10)],
            [
                helper.make_tensor("w", TensorProto.FLOAT, (12, 1, 1, 1), [0.0] * 12),
                helper.make_tensor("m", TensorProto.FLOAT, (12, 10), [0.0] * 120),
            ],
        )
    )
    assert latency_ns(model) == OVERHEAD_NS + (16 * 16 * 1 + 16 * 16) / MACS_PER_NS


def test_timing_answers_at_once_with_the_known_latency(tmp_path: Path) -> None:
    target = FakeTarget(TargetOptions(batch=2))
    with target.load(target.build(tiny_model(width=16), tmp_path / "e.json").engine) as engine:
        samples = engine.time_ms(1_000)
    assert set(samples.wall_ns.tolist()) == {round(known_ns(2, 16))}


def test_noise_is_repeatable_and_of_the_stated_size(tmp_path: Path) -> None:
    def sampled(seed: int) -> np.ndarray:
        target = FakeTarget(TargetOptions(batch=2), noise=0.05, seed=seed)
        with target.load(target.build(tiny_model(), tmp_path / "e.json").engine) as engine:
            return np.asarray(engine.time_ms(4_000).wall_ns)

    first = sampled(1)
    assert np.array_equal(first, sampled(1))
    assert not np.array_equal(first, sampled(2))
    logs = np.log(first / known_ns(2, 8))
    assert logs.std() == pytest.approx(0.05, rel=0.1)
    assert logs.mean() == pytest.approx(0.0, abs=0.005)


def test_a_comparison_finds_the_known_ratio_through_noise(tmp_path: Path) -> None:
    target = FakeTarget(TargetOptions(batch=2), noise=0.02)
    narrow = target.build(tiny_model(width=8), tmp_path / "narrow.json").engine
    wide = target.build(tiny_model(width=64), tmp_path / "wide.json").engine
    with target.load(narrow) as candidate, target.load(wide) as anchor:
        found = compare(candidate, anchor)
    assert found.ratio == pytest.approx(known_ns(2, 8) / known_ns(2, 64), rel=0.02)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    target = FakeTarget(TargetOptions(batch=2))
    for content in (b"garbage" * 9, b""):
        with pytest.raises(BuildError, match="no valid ONNX model"):
            target.build(content, tmp_path / "e.json")
    with pytest.raises(BuildError, match="exactly one output"):
        target.build(tiny_model(two_outputs=True), tmp_path / "e.json")


def test_a_changed_engine_is_refused(tmp_path: Path) -> None:
    target = FakeTarget(TargetOptions(batch=2))
    engine = target.build(tiny_model(), tmp_path / "e.json").engine
    text = engine.read_text()
    engine.write_text(text.replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(EngineError, match="checksum differs"):
        target.load(engine)
    engine.write_text(text.replace("wgates-fake-engine-1", "wgates-fake-engine-2"))
    with pytest.raises(EngineError, match="wgates-fake-engine-2"):
        target.load(engine)
    engine.write_text("[]")
    with pytest.raises(EngineError, match="no fake engine"):
        target.load(engine)
