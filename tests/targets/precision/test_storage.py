from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from targets.precision.half import convert
from targets.precision.reference import parsed
from targets.precision.storage import rounded_storage, without_round_trips

from ..wide_range import CLASSES, images, network, serialised

ort = pytest.importorskip("onnxruntime")


def run(model: onnx.ModelProto, batch: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"images": batch})[0])


def test_overflow_shows_though_the_runtime_hides_it() -> None:
    half = convert(parsed(network(gain=3e4)), ())
    assert not np.isfinite(run(rounded_storage(half), images(2))).all()
    # the reason for rounding explicitly: if this fails, the runtime stores fp16 and needs no help
    assert np.isfinite(run(half, images(2))).all()


def test_every_half_tensor_is_rounded_once() -> None:
    half = convert(parsed(network()), ())
    before = len(half.graph.node)
    stored = rounded_storage(half)
    halves = [n for n in half.graph.node if n.output[0] != "logits"]
    assert len(stored.graph.node) == before + 2 * len(halves)
    assert all(weight.data_type == TensorProto.FLOAT for weight in stored.graph.initializer)
    # rounding once more changes nothing: all stored values have 11 significant bits already
    nodes = len(half.graph.node)
    assert np.array_equal(run(stored, images(2)), run(rounded_storage(half), images(2)))
    assert len(half.graph.node) == nodes  # the argument was left as it was


def test_stored_values_are_those_of_numpys_half() -> None:
    model = parsed(network(blocks=1))
    half = convert(model, [node.name for node in model.graph.node if node.name != "conv1"])
    stored = rounded_storage(half)
    stored.graph.output.append(helper.make_tensor_value_info("conv1.out", TensorProto.FLOAT, None))
    session = ort.InferenceSession(stored.SerializeToString(), providers=["CPUExecutionProvider"])
    (values,) = session.run(["conv1.out"], {"images": images(2)})
    assert np.array_equal(values, values.astype(np.float16).astype(np.float32))


def casting(*types: int) -> onnx.ModelProto:
    """Conv, casts to these types one after the other, pool, flatten, all in a row."""
    nodes = [helper.make_node("Conv", ["images", "w"], ["t0"], "conv")]
    for index, kind in enumerate(types):
        nodes.append(helper.make_node("Cast", [f"t{index}"], [f"t{index + 1}"], to=kind))
    last = f"t{len(types)}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pool.out"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pool.out"], ["logits"], "flatten"))
    weights = {"w": np.ones((CLASSES, 3, 1, 1), np.float32)}
    return onnx.load_from_string(serialised(nodes, weights))


def test_a_cast_there_and_back_goes() -> None:
    tidy = without_round_trips(casting(TensorProto.FLOAT16, TensorProto.FLOAT))
    assert [node.op_type for node in tidy.graph.node] == ["Conv", "GlobalAveragePool", "Flatten"]
    onnx.checker.check_model(tidy)


def test_other_casts_stay() -> None:
    kinds = (TensorProto.DOUBLE, TensorProto.FLOAT)
    tidy = without_round_trips(casting(*kinds))
    assert [node.op_type for node in tidy.graph.node].count("Cast") == 2
    assert np.isfinite(run(tidy, images(2))).all()
