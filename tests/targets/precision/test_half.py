from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from targets.errors import BuildError
from targets.precision.half import HalfModel, convert, to_fp16
from targets.precision.reference import parsed

from ..wide_range import images, network

ort = pytest.importorskip("onnxruntime")

OVERFLOWING = 3e4  # conv1's outputs then leave fp16's range, and conv2's weights shrink to match


def types_of(half: HalfModel) -> dict[str, int]:
    """Node name -> type of what it computes."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(half.onnx)).graph
    values = [*graph.value_info, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return {node.name: types[node.output[0]] for node in graph.node}


def run(model: bytes, batch: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": batch})[0])


def test_a_tame_network_is_fp16_throughout() -> None:
    half = to_fp16(network(), images(4))
    assert half.kept_fp32 == ()
    assert 0 < half.error < 5e-3
    inside = {name: kind for name, kind in types_of(half).items() if "cast" not in name}
    assert set(inside.values()) == {TensorProto.FLOAT16}
    model = onnx.load_from_string(half.onnx)
    onnx.checker.check_model(model, full_check=True)
    (source,), (sink,) = model.graph.input, model.graph.output
    assert source.type.tensor_type.elem_type == sink.type.tensor_type.elem_type == TensorProto.FLOAT
    assert {weight.data_type for weight in model.graph.initializer} == {TensorProto.FLOAT16}
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 2


def test_the_error_is_that_of_the_graph() -> None:
    half, batch = to_fp16(network(), images(2)), images(2)
    exact = run(network(), batch)
    # numpy's own fp16, which rounds every sum: the same size of error, not the same error
    (logits,) = ReferenceEvaluator(onnx.load_from_string(half.onnx)).run(None, {"images": batch})
    independent = np.abs(logits - exact).max() / np.abs(exact).max()
    assert half.error / 5 < independent < 5 * half.error


def test_exactly_the_nodes_around_an_overflow_stay_in_fp32() -> None:
    # what conv1 makes does not fit; relu1 passes it on; conv2 alone makes it small again
    half = to_fp16(network(gain=OVERFLOWING), images(4))
    assert half.kept_fp32 == ("conv1", "relu1", "conv2")
    assert half.error < 5e-3
    types = types_of(half)
    assert types["conv1"] == types["relu1"] == TensorProto.FLOAT
    assert types["relu2"] == types["conv3"] == types["gemm"] == TensorProto.FLOAT16
    # the tensors between them never pass through fp16
    graph = onnx.load_from_string(half.onnx).graph
    by_name = {node.name: node for node in graph.node}
    assert by_name["relu1"].input[0] == by_name["conv1"].output[0]
    assert by_name["conv2"].input[0] == by_name["relu1"].output[0]
    assert by_name["conv1"].input[0] == "images"
    exact = run(network(gain=OVERFLOWING), images(2))
    assert np.abs(run(half.onnx, images(2)) - exact).max() < 5e-3 * np.abs(exact).max()


def test_what_is_kept_is_needed_node_by_node() -> None:
    model, batch = network(gain=OVERFLOWING), images(4)
    kept = to_fp16(model, batch).kept_fp32
    for name in kept:
        # asked for all but one of them, the search has to find that one again
        others = [other for other in kept if other != name]
        assert name in to_fp16(model, batch, keep_fp32=others).kept_fp32


def test_weights_out_of_range_are_not_clamped_in_silence() -> None:
    half = to_fp16(network(gain=1e6), images(4))
    assert "conv1" in half.kept_fp32
    weights = {w.name: w for w in onnx.load_from_string(half.onnx).graph.initializer}
    assert weights["conv1.weight"].data_type == TensorProto.FLOAT
    assert np.abs(numpy_helper.to_array(weights["conv1.weight"])).max() > 65504
    assert weights["conv3.weight"].data_type == TensorProto.FLOAT16


def test_nodes_asked_for_stay_in_fp32_without_need() -> None:
    half = to_fp16(network(), images(2), keep_fp32=["conv3", "conv2"])
    assert half.kept_fp32 == ("conv2", "conv3")
    types = types_of(half)
    assert types["conv2"] == types["conv3"] == TensorProto.FLOAT
    assert types["conv1"] == types["relu2"] == TensorProto.FLOAT16


def test_all_nodes_in_fp32_compute_the_very_same() -> None:
    model = parsed(network())
    names = [node.name for node in model.graph.node]
    untouched = convert(model, names)
    assert [node.name for node in untouched.graph.node] == names
    assert np.array_equal(run(untouched.SerializeToString(), images(2)), run(network(), images(2)))


def test_a_weight_that_both_precisions_read_exists_in_both() -> None:
    half = to_fp16(network(shared=True), images(2), keep_fp32=["conv1"])
    weights = {w.name: w.data_type for w in onnx.load_from_string(half.onnx).graph.initializer}
    assert weights["conv1.bias"] == TensorProto.FLOAT16
    assert weights["conv1.bias.conv1.fp32"] == TensorProto.FLOAT


def test_a_finer_tolerance_keeps_more() -> None:
    loose = to_fp16(network(), images(4))
    tight = to_fp16(network(), images(4), tolerance=loose.error / 3)
    assert tight.kept_fp32 != ()
    assert tight.error <= loose.error / 3


def test_a_network_that_overflows_in_fp32_is_refused() -> None:
    with pytest.raises(BuildError, match="no finite logits") as raised:
        to_fp16(network(gain=1e38), images(2) * 100)
    assert "weights" in raised.value.fix


def test_a_tolerance_that_nothing_meets_is_refused() -> None:
    with pytest.raises(BuildError, match="even with every node in fp32") as raised:
        to_fp16(network(), images(2), tolerance=-1.0)
    assert "larger tolerance" in raised.value.fix


def test_unknown_nodes_are_named() -> None:
    with pytest.raises(BuildError, match="no node conv8, conv9") as raised:
        to_fp16(network(), images(2), keep_fp32=["conv9", "conv1", "conv8"])
    assert raised.value.fix


@pytest.mark.parametrize("n", [0, 1, 3, 5])
def test_any_number_of_images_will_do(n: int) -> None:
    model = network(batch=2, gain=OVERFLOWING)
    half = to_fp16(model, images(n))
    assert half.kept_fp32 == ("conv1", "relu1", "conv2")
    assert to_fp16(model, images(n)) == half


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(BuildError, match=r"takes images \(n, 3, 8, 8\), not \(2, 3, 9, 9\)"):
        to_fp16(network(), np.zeros((2, 3, 9, 9), np.float32))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(BuildError, match="no valid ONNX model") as raised:
        to_fp16(b"garbage" * 100, images(2))
    assert raised.value.fix


def test_it_warns_and_prints_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    to_fp16(network(gain=1e6), images(2))
    assert capfd.readouterr() == ("", "")
