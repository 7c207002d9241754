"""A skeleton made by hand, without torch: convolutions in a row, pool, fully connected."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.skeleton import Layer, Skeleton
from calibration.widths import ChannelGroup, ChannelGroups, Slice

CLASSES = 5
BATCH = 2


def chain(widths: tuple[int, ...], *, size: int = 8, seed: int = 0) -> Skeleton:
    """Groups conv0, conv1, ... of the given channels on images (2, 3, size, size)."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    nodes = []
    source, inputs = "input", 3
    for index, width in enumerate(widths):
        name = f"conv{index}"
        shapes |= {f"{name}.weight": (width, inputs, 3, 3), f"{name}.bias": (width,)}
        tensors = [source, f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", tensors, [f"{name}.out"], name, pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"{name}.on"]))
        source, inputs = f"{name}.on", width
    shapes |= {"head.weight": (CLASSES, inputs), "head.bias": (CLASSES,)}
    nodes += [
        helper.make_node("GlobalAveragePool", [source], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["output"], transB=1),
    ]
    weights = {name: 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()}
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (BATCH, 3, size, size))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, (BATCH, CLASSES))],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return Skeleton(
        onnx_bytes=model.SerializeToString(deterministic=True),
        groups=ChannelGroups(tuple(_groups(widths))),
        layers=tuple(
            Layer(name, size * size if len(shape) == 4 else 1, shape)
            for name, shape in shapes.items()
            if name.endswith("weight")
        ),
        parameters=shapes,
        input_shape=(BATCH, 3, size, size),
    )


def _groups(widths: tuple[int, ...]) -> list[ChannelGroup]:
    readers = [f"conv{index}" for index in range(1, len(widths))] + ["head"]
    groups = []
    for index, (width, reader) in enumerate(zip(widths, readers, strict=True)):
        rows = tuple((channel,) for channel in range(width))
        slices = (
            Slice(f"conv{index}.weight", 0, rows, gate=True),
            Slice(f"conv{index}.bias", 0, rows),
            Slice(f"{reader}.weight", 1, rows),
        )
        groups.append(ChannelGroup(f"conv{index}", width, slices))
    rows = tuple((channel,) for channel in range(CLASSES))
    head = (Slice("head.weight", 0, rows, gate=True), Slice("head.bias", 0, rows))
    return [*groups, ChannelGroup("head", CLASSES, head, frozen="network output")]
