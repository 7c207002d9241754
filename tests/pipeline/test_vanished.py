from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pipeline.vanished import drop_sums_with_nothing

SHAPE = (2, 3, 4, 4)


def graph(value: float, *, zeros_first: bool, wide: tuple[int, ...] = SHAPE) -> onnx.ModelProto:
    """relu(x) + constant of shape `wide`, then a second sum, with a parameter that is zero."""
    constant = helper.make_tensor("value", TensorProto.FLOAT, [1], [value])
    first = ["zeros", "r"] if zeros_first else ["r", "zeros"]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"], value=constant),
        helper.make_node("Add", first, ["s"]),
        helper.make_node("Add", ["s", "parameter"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3, 4, 1))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array(wide, np.int64), "shape"),
            numpy_helper.from_array(np.zeros((2, 3, 4, 1), np.float32), "parameter"),
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def run(model: onnx.ModelProto) -> np.ndarray:
    images = np.random.default_rng(0).standard_normal((2, 3, 4, 1)).astype(np.float32)
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": images})[0])


@pytest.mark.parametrize("zeros_first", [True, False])
def test_a_sum_with_zeros_goes_and_a_parameter_stays(zeros_first: bool) -> None:
    model = graph(0.0, zeros_first=zeros_first, wide=(2, 3, 4, 1))
    before = run(model)
    drop_sums_with_nothing(model)
    assert [node.op_type for node in model.graph.node] == ["Relu", "Add"]
    assert [item.name for item in model.graph.initializer] == ["parameter"]
    assert np.array_equal(run(model), before)


@pytest.mark.parametrize(
    ("value", "wide"), [(0.5, (2, 3, 4, 1)), (0.0, SHAPE)], ids=["not zero", "broadcasts"]
)
def test_a_sum_that_does_something_stays(value: float, wide: tuple[int, ...]) -> None:
    model = graph(value, zeros_first=True, wide=wide)
    before = model.SerializeToString()
    drop_sums_with_nothing(model)
    assert model.SerializeToString() == before
