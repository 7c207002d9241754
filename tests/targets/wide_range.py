"""Small ONNX networks whose values leave fp16's range in one known place, or in none."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = 5
IMAGE = (3, 8, 8)  # (C, H, W)


def network(
    *,
    gain: float = 1.0,
    outlier: float = 1.0,
    batch: int = 2,
    blocks: int = 3,
    shared: bool = False,
    opset: int = 18,
) -> bytes:
    """`blocks` convolutions with ReLUs, pool, flatten, gemm: (batch, 3, 8, 8) to (batch, 5).

    The first convolution's weights are multiplied by `gain`, the second's divided by it: the
    function stays the same, what lies between grows. `outlier` does so to the first channel
    alone. `shared`: the third convolution has the first one's bias.
    """
    generator = np.random.default_rng(0)
    weights = {"gemm.weight": _normal(generator, (CLASSES, 8)) / 3}
    nodes, tensor = [], "images"
    for block in range(1, blocks + 1):
        inputs = 3 if block == 1 else 8
        scale = {1: gain, 2: 1 / gain}.get(block, 1.0)
        bias = "conv1.bias" if shared and block == 3 else f"conv{block}.bias"
        weights[f"conv{block}.weight"] = scale * _normal(generator, (8, inputs, 3, 3)) / 5
        weights.setdefault(bias, (gain if block == 1 else 1.0) * _normal(generator, (8,)))
        read = [tensor, f"conv{block}.weight", bias]
        tensor = f"relu{block}.out"
        conv = f"conv{block}"
        nodes.append(helper.make_node("Conv", read, [f"{conv}.out"], conv, pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"{conv}.out"], [tensor], f"relu{block}"))
    weights["conv1.weight"][0] *= outlier
    weights["conv1.bias"][0] *= outlier
    if blocks > 1:
        weights["conv2.weight"][:, 0] /= outlier
    nodes += [
        helper.make_node("GlobalAveragePool", [tensor], ["pool.out"], "pool"),
        helper.make_node("Flatten", ["pool.out"], ["flatten.out"], "flatten"),
        helper.make_node("Gemm", ["flatten.out", "gemm.weight"], ["logits"], "gemm", transB=1),
    ]
    return serialised(nodes, weights, batch=batch, opset=opset)


def serialised(
    nodes: list[onnx.NodeProto],
    weights: dict[str, NDArray[np.float32]],
    *,
    batch: int = 2,
    opset: int = 18,
    domains: tuple[str, ...] = (),
) -> bytes:
    """A model of these nodes from `images` (batch, 3, 8, 8) to `logits` (batch, 5)."""
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("images", float32, (batch, *IMAGE))],
        [helper.make_tensor_value_info("logits", float32, (batch, CLASSES))],
        [numpy_helper.from_array(np.float32(array), name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return bytes(model.SerializeToString(deterministic=True))


def images(n: int, *, seed: int = 1) -> NDArray[np.float32]:
    """(n, 3, 8, 8) random images."""
    return np.random.default_rng(seed).standard_normal((n, *IMAGE), dtype=np.float32)


def _normal(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return generator.standard_normal(shape, dtype=np.float32)
