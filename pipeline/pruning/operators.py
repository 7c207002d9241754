"""What each ONNX operator does to channels: one rule a family, all in `OPERATORS`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from calibration.widths import GRAPH_ONLY
from pipeline.pruning import rearranging
from pipeline.pruning.identities import Ids
from pipeline.pruning.propagation import MacLayer, Propagation, Rule
from pipeline.pruning.rearranging import attribute, integers, pass_on


def not_analysed(walk: Propagation, node: onnx.NodeProto) -> None:
    walk.give_up(node, f"operator {node.op_type} is not analysed")


# --- layers with weights ---------------------------------------------------------------------


def _conv(walk: Propagation, node: onnx.NodeProto) -> None:
    weight = node.input[1]
    if walk.has_channels(weight):
        return walk.give_up(node, "a convolution whose weights are computed")
    outputs, per_group, *_ = walk.shape(weight)
    convs = attribute(node, "group", 1)
    source = walk.along(node.input[0], 1)
    if convs > per_group:  # many narrow sub-convolutions (depthwise: of one input) go as a whole
        units = _whole(walk, node, source, convs)
        return _finish(walk, node, 0, np.repeat(units, outputs // convs), produces=False)
    if convs > 1:  # a few wide ones: each must lose the same channels, so they are tied
        by_group = source.reshape(convs, per_group)
        for other in by_group[1:]:
            walk.identities.tie(by_group[0], other)
        source = by_group[0]
    walk.use(weight, 1, source)
    return _finish(walk, node, 0, np.tile(walk.identities.new(outputs // convs), convs))


def _transposed(walk: Propagation, node: onnx.NodeProto) -> None:
    weight, source = node.input[1], walk.along(node.input[0], 1)
    if walk.has_channels(weight):
        return walk.give_up(node, "a convolution whose weights are computed")
    convs, outputs = attribute(node, "group", 1), walk.shape(weight)[1]
    if convs > 1:
        if outputs > 1:
            return walk.give_up(node, "a transposed convolution in groups")
        return _finish(walk, node, 0, _whole(walk, node, source, convs), produces=False)
    walk.use(weight, 0, source)
    return _finish(walk, node, 1, walk.identities.new(outputs))


def _whole(walk: Propagation, node: onnx.NodeProto, source: Ids, convs: int) -> Ids:
    """Sub-convolutions that live or die with all their inputs: (convs,) identities."""
    units = source.reshape(convs, -1)
    for other in units.T[1:]:
        walk.identities.tie(units[:, 0], other)
    walk.count(f"{GRAPH_ONLY}{node.name}.group", units[:, 0])
    owner = (walk.parameter(node.input[1]) or "").rpartition(".")[0]
    held = walk.code.holding(owner, convs)
    for attribute_name in held:
        walk.count(attribute_name, units[:, 0])
    if not held:
        walk.identities.freeze(units, "no attribute of the module holds its number of groups")
    return units[:, 0]


def _finish(
    walk: Propagation, node: onnx.NodeProto, dim: int, made: Ids, *, produces: bool = True
) -> None:
    """Record what a convolution makes along `dim` of its weight."""
    weight, sized = node.input[1], node.output[0] if dim == 0 else node.input[0]
    gate = not walk.feeds_only_norm(node.output[0])
    walk.use(weight, dim, made, produces=produces, gate=gate)
    if len(node.input) > 2 and node.input[2]:
        walk.use(node.input[2], 0, made)
    _add_layer(walk, weight, int(np.prod(walk.shape(sized)[2:])))
    walk.emit(node.output[0], made)


def _add_layer(walk: Propagation, weight: str, positions: int) -> None:
    name = walk.parameter(weight)
    walk.layers.append(MacLayer(weight if name is None else name, positions))


def _linear(walk: Propagation, node: onnx.NodeProto) -> None:
    """Gemm and MatMul by a weight: channels along the last axis."""
    source, weight = node.input[0], node.input[1]
    if walk.has_channels(weight) or not walk.has_channels(source) or len(walk.shape(weight)) != 2:
        return _product(walk, node)
    inner, outer = (1, 0) if attribute(node, "transB", 0) else (0, 1)
    walk.use(weight, inner, walk.along(source, -1))
    made = walk.identities.new(walk.shape(weight)[outer])
    gate = not walk.feeds_only_norm(node.output[0])
    walk.use(weight, outer, made, produces=True, gate=gate)
    if len(node.input) > 2 and node.input[2]:
        walk.use(node.input[2], 0, made)
    shape = walk.shape(node.output[0])
    _add_layer(walk, weight, max(1, int(np.prod(shape[:-1])) // walk.images))
    walk.emit(node.output[0], made, len(shape) - 1)
    return None


def _product(walk: Propagation, node: onnx.NodeProto) -> None:
    """Attention, most of the time: what queries and keys have in common is summed away."""
    walk.give_up(node, "channels of tensors that are multiplied with each other")


def _cast_like(walk: Propagation, node: onnx.NodeProto) -> None:
    if walk.has_channels(node.input[0]):  # else a constant takes on a type
        pass_on(walk, node)


def _batch_norm(walk: Propagation, node: onnx.NodeProto) -> None:
    source = walk.along(node.input[0], 1)
    scale, shift, mean, variance = node.input[1:5]
    for tensor in (scale, shift, variance):
        walk.use(tensor, 0, source)
    walk.use(mean, 0, source, gate=True)
    walk.emit(node.output[0], source)


def _instance_norm(walk: Propagation, node: onnx.NodeProto) -> None:
    source = walk.along(node.input[0], 1)
    scale, shift = node.input[1:3]
    walk.use(scale, 0, source, gate=True)  # before it, a closed channel would come out as its shift
    walk.use(shift, 0, source)
    walk.emit(node.output[0], source)


# --- without weights of their own ------------------------------------------------------------


def _elementwise(walk: Propagation, node: onnx.NodeProto) -> None:
    rank = len(walk.shape(node.output[0]))
    sources = [name for name in node.input if walk.has_channels(name)]
    widest = max(sources, key=lambda name: len(walk.channels(name)))
    ids, axis = walk.channels(widest), walk.axis(widest) + rank - len(walk.shape(widest))
    for name in sources:
        other = walk.channels(name)
        if len(other) == 1 < len(ids):
            walk.identities.freeze(other, "one channel is broadcast over many")
        elif walk.axis(name) + rank - len(walk.shape(name)) != axis or len(other) != len(ids):
            for each in (ids, other):
                walk.identities.freeze(each, f"{node.op_type} of channels on different axes")
        else:
            walk.identities.tie(ids, other)
    for name in set(node.input) - set(sources) - {""}:
        of_constant = axis - (rank - len(walk.shape(name)))
        if of_constant >= 0 and walk.shape(name)[of_constant] > 1:
            walk.use(name, of_constant, ids)
    walk.emit(node.output[0], ids, axis)


def _reduce(walk: Propagation, node: onnx.NodeProto) -> None:
    axes, source = integers(walk, node, 1, "axes"), node.input[0]
    shape, axis = walk.shape(source), walk.axis(source)
    reduced = {where % len(shape) for where in axes or range(len(shape))}
    if axis in reduced:
        return walk.give_up(node, f"{node.op_type} over the channel axis")
    if not attribute(node, "keepdims", 1):
        axis -= sum(where < axis for where in reduced)
    return walk.emit(node.output[0], walk.channels(source), axis)


def _softmax(walk: Propagation, node: onnx.NodeProto) -> None:
    over = attribute(node, "axis", -1) % len(walk.shape(node.input[0]))
    if over == walk.axis(node.input[0]):
        return walk.give_up(node, f"{node.op_type} over the channel axis")
    return pass_on(walk, node)


def _layer_norm(walk: Propagation, node: onnx.NodeProto) -> None:
    source = node.input[0]
    if walk.axis(source) >= attribute(node, "axis", -1) % len(walk.shape(source)):
        reason = "LayerNorm over channels: its statistics are of all of them"
        walk.identities.freeze(walk.channels(source), reason)
    return pass_on(walk, node)


def _pool(walk: Propagation, node: onnx.NodeProto) -> None:
    ids = walk.along(node.input[0], 1)
    for name in node.output:
        walk.emit(name, ids)


def _same(rule: Rule, operators: Sequence[str]) -> dict[str, Rule]:
    return dict.fromkeys(operators, rule)


OPERATORS: dict[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "Einsum": _product,
    "CastLike": _cast_like,
    **_same(_linear, ("Gemm", "MatMul")),
    **_same(_elementwise, ("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Pow", "Sum")),
    **_same(_reduce, ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")),
    **_same(_softmax, ("Softmax", "LogSoftmax")),
    **_same(_pool, ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool")),
    **_same(
        pass_on,
        (
            *("Relu", "LeakyRelu", "Elu", "Selu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish"),
            *("Tanh", "Gelu", "Softplus", "Erf", "Sqrt", "Exp", "Log", "Neg", "Abs", "Reciprocal"),
            *("Mish", "Swish", "Softsign", "Celu", "Floor", "Ceil", "Round", "Not"),
            *("Identity", "Dropout", "Cast"),
        ),
    ),
    **rearranging.OPERATORS,
}
