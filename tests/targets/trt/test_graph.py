from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from targets.errors import BuildError
from targets.trt.graph import Request, int8_fallback_order, typed_model

from ..tiny_onnx import CLASSES, images, tiny_model

ort = pytest.importorskip("onnxruntime")


def dynamic_model() -> bytes:
    model = onnx.load_from_string(tiny_model())
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return model.SerializeToString()


def logits(model: bytes, batch: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": batch})[0]


def types_of(model: bytes) -> set[int]:
    return {weight.data_type for weight in onnx.load_from_string(model).graph.initializer}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_fixed_batch_stays_fixed(precision: str) -> None:
    typed = typed_model(tiny_model(), Request(precision, 2, [images(8)]))
    assert typed.signature.input_shape == (2, 3, 8, 8)
    assert typed.signature.classes == CLASSES
    assert not typed.has_dynamic_batch
    batch = images(2, seed=5)
    expected = logits(tiny_model(), batch)
    assert np.abs(logits(typed.onnx, batch) - expected).max() <= 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_dynamic_batch_stays_dynamic(precision: str) -> None:
    typed = typed_model(dynamic_model(), Request(precision, 4, [images(8)]))
    assert typed.has_dynamic_batch
    assert typed.signature.input_shape == (4, 3, 8, 8)
    onnx.checker.check_model(typed.onnx, full_check=True)
    for n in (1, 4, 7):
        batch = images(n, seed=5)
        expected = logits(tiny_model(batch=n), batch)
        found = logits(typed.onnx, batch)
        assert found.shape == (n, CLASSES)
        assert np.abs(found - expected).max() <= 0.1 * np.abs(expected).max()


def test_the_precision_is_in_the_graph() -> None:
    assert types_of(typed_model(tiny_model(), Request("fp32", 2)).onnx) == {TensorProto.FLOAT}
    half = typed_model(tiny_model(), Request("fp16", 2, [images(4)]))
    assert TensorProto.FLOAT16 in types_of(half.onnx)
    assert half.facts["fp16_error"] < 5e-3
    assert half.facts["fp16_images"] == 4
    eighth = typed_model(tiny_model(), Request("int8", 2, [images(4)]))
    assert {TensorProto.INT8, TensorProto.FLOAT} <= types_of(eighth.onnx)
    assert TensorProto.UINT8 not in types_of(eighth.onnx)  # asymmetric: TensorRT refuses it
    assert TensorProto.INT32 not in types_of(eighth.onnx)  # a quantised bias: likewise


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_nodes_are_kept_in_fp32_by_name(precision: str) -> None:
    order = int8_fallback_order(tiny_model(), Request("int8", 2, [images(8)]))
    assert len(order) >= 3
    kept = typed_model(tiny_model(), Request(precision, 2, [images(8)], order[:1]))
    assert kept.kept_fp32 == order[:1]
    with pytest.raises(BuildError, match="no node nowhere"):
        typed_model(tiny_model(), Request(precision, 2, [images(8)], ["nowhere"]))


def test_fp16_needs_no_images_but_int8_does() -> None:
    assert typed_model(tiny_model(), Request("fp16", 2)).facts["fp16_images"] == 0
    with pytest.raises(BuildError, match="got none.*images of the training split"):
        typed_model(tiny_model(), Request("int8", 2))


@pytest.mark.parametrize("content", [b"hello", b"garbage" * 100, b""])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BuildError, match="no valid ONNX model"):
        typed_model(content, Request("fp32", 2))


def test_other_signatures_are_refused() -> None:
    with pytest.raises(BuildError, match="batch 2, the target batch 3.*--batch 2"):
        typed_model(tiny_model(), Request("fp32", 3))
    with pytest.raises(BuildError, match="exactly one output; this has 2"):
        typed_model(tiny_model(two_outputs=True), Request("fp32", 2))


def test_a_size_that_is_not_fixed_is_refused() -> None:
    model = onnx.load_from_string(dynamic_model())
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    with pytest.raises(BuildError, match="not fixed.*static shapes"):
        typed_model(model.SerializeToString(), Request("fp32", 2))


def test_an_unsized_batch_gets_a_name() -> None:
    model = onnx.load_from_string(dynamic_model())
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].Clear()
    typed = typed_model(model.SerializeToString(), Request("fp32", 2))
    assert typed.has_dynamic_batch
    named = onnx.load_from_string(typed.onnx).graph.input[0].type.tensor_type.shape.dim[0]
    assert named.dim_param == "batch"


def test_weights_listed_as_inputs_are_no_inputs() -> None:
    model = onnx.load_from_string(tiny_model())
    for weight in model.graph.initializer:
        listed = helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        model.graph.input.append(listed)
    typed = typed_model(model.SerializeToString(), Request("fp32", 2))
    assert typed.signature.input_name == "images"
