"""A small CNN as ONNX, of any width: what the timing benchmarks run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from targets import load_target
from targets.base import TargetOptions

CLASSES = 10


def small_cnn(width: int, *, size: int, batch: int = 1, extra: int = 0) -> bytes:
    """Five 3x3 convolutions of up to 2 * `width` channels on (batch, 3, size, size) images.

    With `extra` channels, a 1x1 convolution to that many follows.
    """
    generator = np.random.default_rng(0)
    nodes, weights = [], []

    def layer(operator: str, source: str, sink: str, shape: tuple[int, ...], **given: object):
        scale = np.float32(math.sqrt(math.prod(shape[1:])))
        values = generator.standard_normal(shape, dtype=np.float32) / scale
        bias = np.zeros(shape[0], np.float32)
        weights.append(numpy_helper.from_array(values, f"{sink}.weight"))
        weights.append(numpy_helper.from_array(bias, f"{sink}.bias"))
        inputs = [source, f"{sink}.weight", f"{sink}.bias"]
        nodes.append(helper.make_node(operator, inputs, [sink], **given))

    channels, source = 3, "images"
    sizes = [(32, 1, 3), (width, 2, 3), (width, 1, 3), (2 * width, 2, 3), (2 * width, 1, 3)]
    if extra:
        sizes.append((extra, 1, 1))
    for index, (wanted, stride, kernel) in enumerate(sizes):
        conv, relu = f"conv{index}", f"relu{index}"
        shape = (wanted, channels, kernel, kernel)
        layer("Conv", source, conv, shape, pads=[kernel // 2] * 4, strides=[stride] * 2)
        nodes.append(helper.make_node("Relu", [conv], [relu]))
        channels, source = wanted, relu
    nodes.append(helper.make_node("GlobalAveragePool", [source], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    layer("Gemm", "features", "logits", (CLASSES, channels), transB=1)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, (batch, 3, size, size))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, (batch, CLASSES))
    graph = helper.make_graph(nodes, "small_cnn", [images], [logits], weights)
    opset = helper.make_opsetid("", 18)
    model: ModelProto = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return model.SerializeToString(deterministic=True)


def build(target: str, onnx: bytes, out: Path) -> Path:
    """Build an engine of one thread at `out`, to which the target's suffix is added."""
    loaded = load_target(target, TargetOptions(threads=1))
    return loaded.build(onnx, out.with_suffix(loaded.engine_suffix)).engine
