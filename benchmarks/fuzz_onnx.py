"""Damage to ONNX graphs that protobuf still reads."""

from __future__ import annotations

import random
from typing import Any

import onnx

SIZES = (0, -1, 1, 7, 2**31, 2**40, 2**62)


def graph_damage(rng: random.Random, data: bytes) -> bytes:
    """A message that protobuf reads, and no sound graph."""
    model: Any = onnx.load_from_string(data)
    rng.choice((_operator, _weight, _shape, _point_outside, _whole))(rng, model)
    return bytes(model.SerializeToString())


def _operator(rng: random.Random, model: Any) -> None:
    node = rng.choice(list(model.graph.node))
    change = rng.randrange(4)
    if change == 0:
        node.op_type = rng.choice(("", "If", "Loop", "NoSuch", "Conv", "Reshape"))
    elif change == 1:
        node.input[rng.randrange(len(node.input))] = rng.choice(("", "nowhere", node.output[0]))
    elif change == 2:
        for attribute in node.attribute:
            attribute.ints[:] = [rng.choice(SIZES)] * len(attribute.ints)
    else:
        node.domain = rng.choice(("com.example", "ai.onnx.ml", "\u202e"))


def _weight(rng: random.Random, model: Any) -> None:
    weight = rng.choice(list(model.graph.initializer))
    if rng.random() < 0.5:
        weight.dims[rng.randrange(len(weight.dims))] = rng.choice(SIZES)
    else:
        weight.data_type = rng.choice((0, 2, 7, 11, 99))


def _shape(rng: random.Random, model: Any) -> None:
    port = rng.choice((model.graph.input[0], model.graph.output[0]))
    dims = port.type.tensor_type.shape.dim
    dims[rng.randrange(len(dims))].dim_value = rng.choice(SIZES)


def _whole(rng: random.Random, model: Any) -> None:
    if rng.random() < 0.5:
        model.opset_import[0].version = rng.choice((0, 1, 6, 99, 2**40))
    else:
        model.graph.node.extend([rng.choice(list(model.graph.node))] * rng.choice((1, 3, 300)))


def _point_outside(rng: random.Random, model: Any) -> None:
    """Weights that lie in another file."""
    weight = rng.choice(list(model.graph.initializer))
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    place = rng.choice(("/etc/passwd", "../../../../etc/passwd", "model.onnx", "/dev/zero"))
    for key, value in (("location", place), ("length", str(rng.choice((64, 2**40))))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
