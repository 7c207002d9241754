"""Tiny ONNX networks with deterministic weights: conv, relu, conv, pool, gemm."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = 5
IMAGE = (3, 8, 8)  # (C, H, W)


def tiny_model(
    *, batch: int = 2, width: int = 8, seed: int = 0, two_outputs: bool = False
) -> bytes:
    """A serialised network with images (batch, 3, 8, 8) in and logits (batch, 5) out."""
    nodes = [
        helper.make_node("Conv", ["images", "w1", "b1"], ["conv1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv1"], ["relu1"]),
        helper.make_node("Conv", ["relu1", "w2", "b2"], ["conv2"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["conv2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "w3", "b3"], ["logits"], transB=1),
    ]
    outputs = [_value("logits", (batch, CLASSES))]
    if two_outputs:
        outputs.append(_value("features", (batch, width)))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [_value("images", (batch, *IMAGE))],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in _weights(width, seed).items()],
    )
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def images(n: int, *, seed: int = 1) -> NDArray[np.float32]:
    """(n, 3, 8, 8) random images."""
    return np.random.default_rng(seed).standard_normal((n, *IMAGE), dtype=np.float32)


def _value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _weights(width: int, seed: int) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    shapes = {
        "w1": (width, IMAGE[0], 3, 3),
        "b1": (width,),
        "w2": (width, width, 3, 3),
        "b2": (width,),
        "w3": (CLASSES, width),
        "b3": (CLASSES,),
    }
    return {
        name: 0.3 * generator.standard_normal(shape, dtype=np.float32)
        for name, shape in shapes.items()
    }
