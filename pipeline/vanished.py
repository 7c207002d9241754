"""Sums with nothing, left out of an exported graph: what remains of branches that were removed."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import numpy_helper

from calibration.branches import keep_needed

Shapes = dict[str, list[int]]


def drop_sums_with_nothing(proto: onnx.ModelProto) -> None:
    """Let `x + zeros` of x's own shape be x; then drop the nodes and constants nobody reads."""
    graph = proto.graph
    zeros, shapes = _zeros(graph), _shapes(graph)
    instead: dict[str, str] = {}  # output of a sum -> what stands for it
    nodes = []
    for node in graph.node:  # in the order of computation
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
        if (other := _alone(node, shapes, zeros)) is None:
            nodes.append(node)
        else:
            instead[node.output[0]] = other
    if not instead:
        return
    read = keep_needed(graph, nodes)
    _keep(graph.initializer, read)
    _keep(graph.value_info, read | {name for node in graph.node for name in node.output})


def _zeros(graph: onnx.GraphProto) -> set[str]:
    """Zeros that the module's code makes; a parameter that is zero now stays a parameter."""
    found: set[str] = set()
    for node in graph.node:
        value = [item.t for item in node.attribute if item.name == "value"]
        if node.op_type == "ConstantOfShape" and not any(
            numpy_helper.to_array(item).any() for item in value
        ):
            found.update(node.output)
    return found


def _alone(node: onnx.NodeProto, shapes: Shapes, zeros: set[str]) -> str | None:
    """What the node gives unchanged, if it only adds nothing to it."""
    if node.op_type != "Add":
        return None
    first, second = node.input
    for nothing, other in ((first, second), (second, first)):
        if nothing in zeros and shapes.get(other) == shapes.get(node.output[0], ()):
            return str(other)
    return None


def _shapes(graph: onnx.GraphProto) -> Shapes:
    return {
        item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in (*graph.input, *graph.value_info)
    }


def _keep(items: Any, names: set[str]) -> None:
    kept = [item for item in items if item.name in names]
    del items[:]
    items.extend(kept)
