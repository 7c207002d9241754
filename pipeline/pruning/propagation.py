"""Channel propagation over an ONNX graph: which rows of which tensors belong to one channel.

Every channel of every producer starts as an identity of its own; each operator either passes
identities on (relu), ties them (add), repeats them (flatten), or cannot be analysed and freezes
them with a reason. What remains tied at the end is one channel that lives or dies as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Ids = NDArray[np.int64]  # one identity per row of a channel axis


class Identities:
    """Union-find over channel identities; a frozen identity freezes all it is tied to."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reason: dict[int, str] = {}

    def new(self, count: int) -> Ids:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def root(self, identity: int) -> int:
        while self._parent[identity] != identity:
            self._parent[identity] = self._parent[self._parent[identity]]
            identity = self._parent[identity]
        return identity

    def roots(self, ids: Ids) -> Ids:
        return np.array([self.root(int(i)) for i in ids], dtype=np.int64)

    def tie(self, first: Ids, second: Ids) -> None:
        for one, other in zip(first, second, strict=True):
            low, high = sorted((self.root(int(one)), self.root(int(other))))
            if low != high:
                self._parent[high] = low
                if high in self._reason:
                    self._reason.setdefault(low, self._reason.pop(high))

    def freeze(self, ids: Ids, reason: str) -> None:
        for root in {self.root(int(i)) for i in ids}:
            self._reason.setdefault(root, reason)

    def reason(self, identity: int) -> str | None:
        return self._reason.get(self.root(identity))


@dataclass(frozen=True)
class Use:
    """One tensor dimension whose rows carry channel identities."""

    tensor: str
    dim: int
    ids: Ids
    produces: bool  # the rows make these channels (a convolution's filters)
    gate: bool  # the output of the module that owns the tensor is where a gate applies


@dataclass(frozen=True)
class MacLayer:
    """A layer that multiplies: its weight tensor and how often each kernel is applied."""

    tensor: str
    positions: int  # output pixels an image (1 for a fully connected layer)


class Propagation:
    """Walks a static-shape graph in order; afterwards `uses`, `layers` and `identities` are set."""

    def __init__(self, model: onnx.ModelProto, parameters: frozenset[str]) -> None:
        self.graph = model.graph
        self.parameters = parameters  # state-dict names
        self.identities = Identities()
        self.uses: list[Use] = []
        self.layers: list[MacLayer] = []
        self.width_free_reshapes: dict[str, list[int]] = {}  # node name -> shape that adapts
        self._channels: dict[str, Ids] = {}
        self._shape = _shapes(model.graph)
        self._constants = {item.name: item for item in model.graph.initializer}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)

    def run(self) -> None:
        for item in self.graph.input:
            ids = self.identities.new(self._shape[item.name][1])
            self.identities.freeze(ids, "network input")
            self._channels[item.name] = ids
        for node in self.graph.node:
            OPERATORS.get(node.op_type, _unknown)(self, node)
        for item in self.graph.output:
            self.identities.freeze(self._channels[item.name], "network output")

    # what the operator rules below are written in

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shape[name]

    def channels(self, name: str) -> Ids:
        return self._channels[name]

    def has_channels(self, name: str) -> bool:
        return name in self._channels

    def constant(self, name: str) -> NDArray[np.generic] | None:
        item = self._constants.get(name)
        return None if item is None else numpy_helper.to_array(item)

    def emit(self, name: str, ids: Ids) -> None:
        self._channels[name] = ids

    def use(
        self, tensor: str, dim: int, ids: Ids, *, produces: bool = False, gate: bool = False
    ) -> None:
        if tensor not in self.parameters:
            self.identities.freeze(ids, f"meets {tensor}, a constant that is not a parameter")
            return
        for earlier in self.uses:
            if (earlier.tensor, earlier.dim) == (tensor, dim):  # a weight shared by two layers
                self.identities.tie(earlier.ids, ids)
                return
        self.uses.append(Use(tensor, dim, ids, produces, gate))

    def feeds_only_batch_norm(self, name: str) -> bool:
        return [node.op_type for node in self._consumers.get(name, [])] == ["BatchNormalization"]

    def give_up(self, node: onnx.NodeProto, reason: str) -> None:
        """Freeze every channel that touches the node; its outputs start frozen."""
        for name in node.input:
            if name in self._channels:
                self.identities.freeze(self._channels[name], reason)
        for name in node.output:
            shape = self._shape.get(name, ())
            ids = self.identities.new(shape[1] if len(shape) > 1 else 1)
            self.identities.freeze(ids, reason)
            self._channels[name] = ids


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    for item in (*graph.input, *graph.output, *graph.value_info):
        dims = item.type.tensor_type.shape.dim
        shapes.setdefault(item.name, tuple(dim.dim_value for dim in dims))
    return shapes


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


def _unknown(walk: Propagation, node: onnx.NodeProto) -> None:
    walk.give_up(node, f"operator {node.op_type} is not analysed")


def _pass_on(walk: Propagation, node: onnx.NodeProto) -> None:
    if not walk.has_channels(node.input[0]):
        return _unknown(walk, node)
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
        return _unknown(walk, node)
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


Rule = Callable[[Propagation, onnx.NodeProto], None]


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
