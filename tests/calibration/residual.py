"""A skeleton made by hand with residual branches, each of two convolutions, that may go."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.branches import Branch
from calibration.skeleton import Layer, Skeleton
from calibration.widths import ChannelGroup, ChannelGroups, Slice

CLASSES, BATCH, SIZE = 5, 2, 8
STREAM = 16


def residual(inner: tuple[int, ...] = (16, 32)) -> Skeleton:
    """`x = x + b{i}.end(relu(b{i}.start(x)))` for each inner width, x of 16 channels (`stem`)."""
    shapes = {"stem.weight": (STREAM, 3, 3, 3), "stem.bias": (STREAM,)}
    nodes = [helper.make_node("Conv", ["input", *shapes], ["x0"], "stem", pads=[1, 1, 1, 1])]
    branches = []
    for index, width in enumerate(inner):
        start, end = f"b{index}.start", f"b{index}.end"
        shapes |= {f"{start}.weight": (width, STREAM, 1, 1), f"{start}.bias": (width,)}
        shapes |= {f"{end}.weight": (STREAM, width, 1, 1), f"{end}.bias": (STREAM,)}
        nodes += [
            helper.make_node(
                "Conv", [f"x{index}", f"{start}.weight", f"{start}.bias"], [start], start
            ),
            helper.make_node("Relu", [start], [f"{start}.on"]),
            helper.make_node("Conv", [f"{start}.on", f"{end}.weight", f"{end}.bias"], [end], end),
            helper.make_node("Add", [end, f"x{index}"], [f"x{index + 1}"], f"sum{index}"),
        ]
        branches.append(Branch(end, (start,), (start, end), f"sum{index}", f"x{index}"))
    shapes |= {"head.weight": (CLASSES, STREAM), "head.bias": (CLASSES,)}
    nodes += [
        helper.make_node("GlobalAveragePool", [f"x{len(inner)}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["output"], transB=1),
    ]
    return Skeleton(
        onnx_bytes=_model(nodes, shapes),
        groups=ChannelGroups(tuple(_groups(inner)), tuple(branches)),
        layers=tuple(
            Layer(name, SIZE * SIZE if len(shape) == 4 else 1, shape)
            for name, shape in shapes.items()
            if name.endswith("weight")
        ),
        parameters=shapes,
        input_shape=(BATCH, 3, SIZE, SIZE),
    )


def _groups(inner: tuple[int, ...]) -> list[ChannelGroup]:
    ends = [f"b{index}.end" for index in range(len(inner))]
    readers = ["head", *(f"b{index}.start" for index in range(len(inner)))]
    rows = _rows(STREAM)
    stream = [Slice(f"{name}.weight", 0, rows) for name in ("stem", *ends)]
    stream += [Slice(f"{name}.bias", 0, rows) for name in ("stem", *ends)]
    stream += [Slice(f"{name}.weight", 1, rows) for name in readers]
    found = [ChannelGroup("stem", STREAM, tuple(stream), "stream")]
    for index, width in enumerate(inner):
        start, rows = f"b{index}.start", _rows(width)
        slices = (
            Slice(f"{start}.weight", 0, rows, gate=True),
            Slice(f"{start}.bias", 0, rows),
            Slice(f"b{index}.end.weight", 1, rows),
        )
        found.append(ChannelGroup(start, width, slices))
    return found


def _rows(count: int) -> tuple[tuple[int, ...], ...]:
    return tuple((channel,) for channel in range(count))


def _model(nodes: list[onnx.NodeProto], shapes: dict[str, tuple[int, ...]]) -> bytes:
    rng = np.random.default_rng(0)
    weights = {name: 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()}
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (BATCH, 3, SIZE, SIZE))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, (BATCH, CLASSES))],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    found: bytes = model.SerializeToString(deterministic=True)
    return found
