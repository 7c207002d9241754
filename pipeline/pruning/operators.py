"""What each ONNX operator does to channels: one rule an operator, all in `OPERATORS`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from pipeline.pruning.propagation import MacLayer, Propagation, Rule


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    for item in node.attribute:
        if item.name == name:
            return int(item.i)
    return default


def _integers(walk: Propagation, node: onnx.NodeProto, index: int, name: str) -> list[int] | None:
    """An integer list given as input `index` or, in older opsets, as an attribute."""
    if len(node.input) > index and node.input[index]:
        value = walk.constant(node.input[index])
        return None if value is None else [int(v) for v in np.ravel(value)]
    for item in node.attribute:
        if item.name == name:
            return list(item.ints)
    return None


def not_analysed(walk: Propagation, node: onnx.NodeProto) -> None:
    walk.give_up(node, f"operator {node.op_type} is not analysed")


def _pass_on(walk: Propagation, node: onnx.NodeProto) -> None:
    if not walk.has_channels(node.input[0]):
        return not_analysed(walk, node)
    for name in node.output:
        walk.emit(name, walk.channels(node.input[0]))
    return None


def _conv(walk: Propagation, node: onnx.NodeProto) -> None:
    source, weight = walk.channels(node.input[0]), node.input[1]
    outputs, per_group, *_ = walk.shape(weight)
    convs = attribute(node, "group", 1)
    gate = not walk.feeds_only_batch_norm(node.output[0])
    produces = True
    if convs == 1:
        walk.use(weight, 1, source)
        made = walk.identities.new(outputs)
    elif per_group == 1:  # depthwise: makes nothing of its own, filter j goes with input j
        made, produces = np.repeat(source, outputs // convs), False
    else:  # grouped: each sub-convolution must lose the same channels, so they are tied
        by_group = source.reshape(convs, per_group)
        for other in by_group[1:]:
            walk.identities.tie(by_group[0], other)
        walk.use(weight, 1, by_group[0])
        made = np.tile(walk.identities.new(outputs // convs), convs)
    walk.use(weight, 0, made, produces=produces, gate=gate)
    if len(node.input) > 2 and node.input[2]:
        walk.use(node.input[2], 0, made)
    walk.layers.append(MacLayer(weight, int(np.prod(walk.shape(node.output[0])[2:]))))
    walk.emit(node.output[0], made)


def _gemm(walk: Propagation, node: onnx.NodeProto) -> None:
    weight = node.input[1]
    if not walk.has_channels(node.input[0]) or walk.constant(weight) is None:
        return not_analysed(walk, node)
    inner, outer = (1, 0) if attribute(node, "transB", 0) else (0, 1)
    walk.use(weight, inner, walk.channels(node.input[0]))
    made = walk.identities.new(walk.shape(weight)[outer])
    gate = not walk.feeds_only_batch_norm(node.output[0])
    walk.use(weight, outer, made, produces=True, gate=gate)
    if len(node.input) > 2 and node.input[2]:
        walk.use(node.input[2], 0, made)
    walk.layers.append(MacLayer(weight, 1))
    walk.emit(node.output[0], made)
    return None


def _batch_norm(walk: Propagation, node: onnx.NodeProto) -> None:
    source = walk.channels(node.input[0])
    scale, shift, mean, variance = node.input[1:5]
    for tensor in (scale, shift, variance):
        walk.use(tensor, 0, source)
    walk.use(mean, 0, source, gate=True)
    walk.emit(node.output[0], source)


def _elementwise(walk: Propagation, node: onnx.NodeProto) -> None:
    rank = max(len(walk.shape(name)) for name in node.input)
    sources = [name for name in node.input if walk.has_channels(name)]
    if not sources or any(len(walk.shape(name)) != rank for name in sources):
        return walk.give_up(node, f"{node.op_type} of tensors with unlike ranks")
    widest = max((walk.channels(name) for name in sources), key=len)
    for name in sources:
        ids = walk.channels(name)
        if len(ids) == len(widest):
            walk.identities.tie(widest, ids)
        else:
            walk.identities.freeze(ids, "one channel is broadcast over many")
    for name in set(node.input) - set(sources):
        axis = 1 - (rank - len(walk.shape(name)))
        if axis >= 0 and walk.shape(name)[axis] > 1:
            walk.use(name, axis, widest)
    walk.emit(node.output[0], widest)
    return None


def _reduce(walk: Propagation, node: onnx.NodeProto) -> None:
    axes = _integers(walk, node, 1, "axes")
    rank = len(walk.shape(node.input[0]))
    if axes is None or any(axis % rank <= 1 for axis in axes):
        return walk.give_up(node, f"{node.op_type} over the channel axis")
    return _pass_on(walk, node)


def _reshape(walk: Propagation, node: onnx.NodeProto) -> None:
    before, after = walk.shape(node.input[0]), walk.shape(node.output[0])
    if not walk.has_channels(node.input[0]) or len(after) < 2 or before[0] != after[0]:
        return walk.give_up(node, f"{node.op_type} that moves the batch axis")
    source = walk.channels(node.input[0])
    pixels = int(np.prod(before[2:]))
    if before[1] == after[1]:
        ids = source
    elif after[1:] == (before[1] * pixels,):
        ids = np.repeat(source, pixels)
    else:
        return walk.give_up(node, f"{node.op_type} that splits the channel axis")
    if node.op_type == "Reshape":
        walk.width_free_reshapes[node.name] = [after[0], -1, *after[2:]]
    walk.emit(node.output[0], ids)
    return None


def _concat(walk: Propagation, node: onnx.NodeProto) -> None:
    rank = len(walk.shape(node.output[0]))
    if not all(walk.has_channels(name) for name in node.input):
        return walk.give_up(node, "concat with a constant")
    if attribute(node, "axis", 1) % rank != 1:
        return _elementwise(walk, node)
    walk.emit(node.output[0], np.concatenate([walk.channels(name) for name in node.input]))
    return None


def _pad(walk: Propagation, node: onnx.NodeProto) -> None:
    pads = _integers(walk, node, 1, "pads")
    axes = _integers(walk, node, 3, "axes")
    rank = len(walk.shape(node.input[0]))
    if pads is None:
        return walk.give_up(node, "padding by amounts that are not constant")
    axes = list(range(rank)) if axes is None else axes
    touched = {axis % rank for i, axis in enumerate(axes) if pads[i] or pads[i + len(axes)]}
    if touched & {0, 1}:
        return walk.give_up(node, "channels are padded by fixed amounts (padding shortcut)")
    return _pass_on(walk, node)


def _slice(walk: Propagation, node: onnx.NodeProto) -> None:
    axes = _integers(walk, node, 3, "axes")
    rank = len(walk.shape(node.input[0]))
    unchanged = walk.shape(node.input[0])[:2] == walk.shape(node.output[0])[:2]
    if axes is None or (any(axis % rank <= 1 for axis in axes) and not unchanged):
        return walk.give_up(node, "channels are sliced at fixed bounds")
    return _pass_on(walk, node)


def _same(rule: Rule, operators: Sequence[str]) -> dict[str, Rule]:
    return dict.fromkeys(operators, rule)


OPERATORS: dict[str, Rule] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "BatchNormalization": _batch_norm,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Concat": _concat,
    "Pad": _pad,
    "Slice": _slice,
    **_same(_elementwise, ("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu")),
    **_same(_reduce, ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")),
    **_same(
        _pass_on,
        (
            *("Relu", "LeakyRelu", "Elu", "Selu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish"),
            *("Tanh", "Gelu", "Softplus", "Erf", "Sqrt", "Exp", "Neg", "Abs", "Mish", "Swish"),
            *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
            *("Identity", "Dropout", "Cast"),
        ),
    ),
}
