"""Channel propagation over an ONNX graph: which rows of which tensors belong to one channel.

Every channel of every producer starts as an identity of its own; each operator either passes
identities on (relu), ties them (add), repeats them (flatten), or cannot be analysed and freezes
them with a reason. What remains tied at the end is one channel that lives or dies as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    def run(self, rules: Mapping[str, Rule], otherwise: Rule) -> None:
        """Apply to each node the rule of its operator, or `otherwise`."""
        for item in self.graph.input:
            ids = self.identities.new(self._shape[item.name][1])
            self.identities.freeze(ids, "network input")
            self._channels[item.name] = ids
        for node in self.graph.node:
            rules.get(node.op_type, otherwise)(self, node)
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


Rule = Callable[[Propagation, onnx.NodeProto], None]
