"""Typed fp16 graphs: casts that cancel out, and a float32 form that shows fp16's overflow."""

from __future__ import annotations

import importlib
from typing import Any

from targets.precision.graph import replace_nodes, sort_nodes


def without_round_trips(model: Any) -> Any:
    """The same graph without casts from fp32 to fp16 and back, each cast once, in order.

    A converter that treats each node alone puts them between two neighbours in fp32, where they
    would bring back the very overflow that fp32 is there to avoid; and it repeats a cast for each
    node in fp32 that reads the tensor.
    """
    graph = model.graph
    _drop_repeated(graph)
    float32 = importlib.import_module("onnx").TensorProto.FLOAT
    producers = {name: node for node in graph.node for name in node.output}
    originals: dict[str, str] = {}
    for node in graph.node:
        below = producers.get(node.input[0]) if _casts_to(node) == float32 else None
        if below is not None and _is_half_cast(below):
            originals[node.output[0]] = below.input[0]
    outputs = {value.name for value in graph.output}
    replace_nodes(graph, [n for n in graph.node if originals.keys().isdisjoint(n.output)])
    # a graph's output keeps its name, so there it is the original that is renamed
    renamed = {old: new for new, old in originals.items() if new in outputs}
    for node in graph.node:
        for position, name in enumerate(node.input):
            name = originals.get(name, name)
            node.input[position] = renamed.get(name, name)
        for position, name in enumerate(node.output):
            node.output[position] = renamed.get(name, name)
    _drop_unread_casts(graph, outputs)
    sort_nodes(graph)
    return model


def _drop_repeated(graph: Any) -> None:
    distinct = list({tuple(node.output): node for node in graph.node}.values())
    replace_nodes(graph, distinct)


def _casts_to(node: Any) -> int | None:
    if node.op_type != "Cast":
        return None
    return int(next(item.i for item in node.attribute if item.name == "to"))


def _is_half_cast(node: Any) -> bool:
    return bool(_casts_to(node) == importlib.import_module("onnx").TensorProto.FLOAT16)


def _drop_unread_casts(graph: Any, outputs: set[str]) -> None:
    while True:
        read = {name for node in graph.node for name in node.input} | outputs
        unread = [n for n in graph.node if n.op_type == "Cast" and n.output[0] not in read]
        if not unread:
            return
        for node in unread:
            graph.node.remove(node)


def rounded_storage(model: Any) -> Any:
    """A float32 copy of an fp16 graph that stores each fp16 tensor in 16 bits, and only stores it.

    ONNX Runtime's CPU provider keeps the tensors between two nodes without an fp16 kernel in
    float32, so that running the fp16 graph itself would hide its overflow.
    """
    onnx = importlib.import_module("onnx")
    half = _half_tensors(model)
    copied = type(model)()
    copied.CopyFrom(model)
    graph = copied.graph
    for weight in graph.initializer:
        _widen(weight)
    nodes = []
    for node in graph.node:
        _widen_attributes(node)
        nodes += [node, *_stored(node, half)]
    replace_nodes(graph, nodes)
    del graph.value_info[:]
    onnx.checker.check_model(copied)
    return copied


def _half_tensors(model: Any) -> frozenset[str]:
    onnx = importlib.import_module("onnx")
    plain = type(model)()
    plain.CopyFrom(model)
    del plain.graph.value_info[:]
    typed = onnx.shape_inference.infer_shapes(plain).graph
    half = onnx.TensorProto.FLOAT16
    return frozenset(v.name for v in typed.value_info if v.type.tensor_type.elem_type == half)


def _widen(tensor: Any) -> None:
    onnx = importlib.import_module("onnx")
    if tensor.data_type == onnx.TensorProto.FLOAT16:
        values = onnx.numpy_helper.to_array(tensor).astype("float32")
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def _widen_attributes(node: Any) -> None:
    onnx = importlib.import_module("onnx")
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _widen(attribute.t)
        if attribute.name in ("to", "dtype") and attribute.i == onnx.TensorProto.FLOAT16:
            attribute.i = onnx.TensorProto.FLOAT


def _stored(node: Any, half: frozenset[str]) -> list[Any]:
    """Casts to fp16 and back after each fp16 output of a node; its outputs are renamed."""
    onnx = importlib.import_module("onnx")
    casts = []
    for position, name in enumerate(node.output):
        if name in half:
            node.output[position] = f"{name}.exact"
            down = {"to": onnx.TensorProto.FLOAT16}
            up = {"to": onnx.TensorProto.FLOAT}
            casts.append(onnx.helper.make_node("Cast", [f"{name}.exact"], [f"{name}.half"], **down))
            casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], **up))
    return casts
