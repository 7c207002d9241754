"""Edits of the exported graph that make its sizes follow the widths."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.pruning.propagation import Propagation


def make_width_free(proto: onnx.ModelProto, walk: Propagation) -> None:
    """Put in place what the rules found: shapes that adapt, bounds that count, equal splits."""
    counters: list[onnx.NodeProto] = []
    sizes = {use.tensor: len(use.ids) for use in walk.uses}
    for node in proto.graph.node:
        node.doc_string = ""
        for index in range(1, 4):
            if shape := walk.adapting.get((node.name, index)):
                node.input[index] = _constant(proto, f"{node.name}.{index}", shape)
            if bounds := walk.bounds.get((node.name, index)):
                made = [_counter(proto, name, sizes[name]) for name in bounds]
                counters += made
                if len(made) > 1:
                    parts = [one.output[0] for one in made]
                    name = f"{node.name}.{index}"
                    counters.append(helper.make_node("Concat", parts, [name], name=name, axis=0))
                node.input[index:] = [counters[-1].output[0], *node.input[index + 1 :]]
        if (node.name, 1) in walk.bounds and node.op_type == "Split":
            _drop_attribute(node, "num_outputs")
        elif (node.name, 1) in walk.adapting and node.op_type == "Split":
            _split_equally(node)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*counters, *nodes])
    _drop_unused(proto)


def _constant(proto: onnx.ModelProto, name: str, values: list[int]) -> str:
    proto.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name


def _counter(proto: onnx.ModelProto, name: str, size: int) -> onnx.NodeProto:
    """A node that gives the number of rows of a tensor which is cut like any other."""
    zeros = helper.make_tensor(name, TensorProto.INT8, [size], bytes(size), raw=True)
    proto.graph.initializer.append(zeros)
    return helper.make_node("Shape", [name], [f"{name}.size"], name=f"{name}.size")


def _split_equally(node: onnx.NodeProto) -> None:
    """Into parts of one size, whatever it is."""
    del node.input[1:]
    if not any(item.name == "num_outputs" for item in node.attribute):
        node.attribute.append(helper.make_attribute("num_outputs", len(node.output)))


def _drop_attribute(node: onnx.NodeProto, name: str) -> None:
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _drop_unused(proto: onnx.ModelProto) -> None:
    used = {name for node in proto.graph.node for name in node.input}
    kept = [item for item in proto.graph.initializer if item.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
