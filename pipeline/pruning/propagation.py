"""Channel propagation over an ONNX graph: which rows of which tensors belong to one channel.

Every channel of every producer starts as an identity of its own; each operator either passes
identities on (relu), ties them (add), repeats them (flatten), or cannot be analysed and freezes
them with a reason. What remains tied at the end is one channel that lives or dies as a whole.
In every tensor channels lie along one axis: axis 1 of images, the last of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.widths import GRAPH_ONLY
from pipeline.pruning.identities import Identities, Ids


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


@dataclass(frozen=True)
class View:
    """A parameter as the graph sees it: transposed, or with axes of size 1 put in."""

    parameter: str
    axes: tuple[int | None, ...]  # of the parameter, by axis of the view


@dataclass(frozen=True)
class Code:
    """What the modules' own code holds besides tensors."""

    # path of a module -> attribute -> value; `splits.0` is the first of a list
    integers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def holding(self, path: str, value: int) -> list[str]:
        """Attributes of the module at `path` that hold `value`, by their own paths."""
        start = f"{path}." if path else ""
        held = self.integers.get(path, {})
        return [start + name for name, each in held.items() if each == value]

    def listing(self, path: str, values: list[int]) -> list[str]:
        """The items of the module's lists that are exactly `values`, in order."""
        start = f"{path}." if path else ""
        held = self.integers.get(path, {})
        lists = {name.rpartition(".")[0] for name in held if "." in name}
        found: list[str] = []
        for name in sorted(lists):
            items = [f"{name}.{i}" for i in range(len(values))]
            if f"{name}.{len(values)}" not in held and [held.get(i) for i in items] == values:
                found += [start + item for item in items]
        return found


class Propagation:
    """Walks a static-shape graph in order; afterwards `uses`, `layers` and `identities` are set."""

    def __init__(
        self, model: onnx.ModelProto, parameters: frozenset[str], code: Code | None = None
    ) -> None:
        self.graph = model.graph
        self.code = code or Code()
        self.identities = Identities()
        self.uses: list[Use] = []
        self.layers: list[MacLayer] = []
        self.adapting: dict[tuple[str, int], list[int]] = {}  # (node, input) -> shape that adapts
        # (node, input) -> counters whose sizes it is
        self.bounds: dict[tuple[str, int], list[str]] = {}
        self._channels: dict[str, tuple[int, Ids]] = {}  # tensor -> axis, identities along it
        self._shape = _shapes(model.graph)
        self._constants = {item.name: item for item in model.graph.initializer}
        self._views = {
            name: View(name, tuple(range(len(item.dims))))
            for name, item in self._constants.items()
            if name in parameters
        }
        self._use_at: dict[tuple[str, int], int] = {}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)

    def run(self, rules: Mapping[str, Rule], otherwise: Rule) -> None:
        """Apply to each node the rule of its operator, or `otherwise`."""
        for item in self.graph.input:
            ids = self.identities.frozen(self._shape[item.name][1], "network input")
            self._channels[item.name] = (1, ids)
        self.images = self._shape[self.graph.input[0].name][0]
        for node in self.graph.node:
            if not any(name in self._channels for name in node.input):
                self._constant_node(node)
            elif self._sized(node):
                rules.get(node.op_type, otherwise)(self, node)
            else:
                self.give_up(node, f"{node.op_type} of unknown shape")
        for item in self.graph.output:
            self.identities.freeze(self._channels[item.name][1], "network output")

    def _sized(self, node: onnx.NodeProto) -> bool:
        names = [name for name in node.input if name in self._channels]
        return all(0 not in self._shape.get(name, (0,)) for name in (*names, node.output[0]))

    def _constant_node(self, node: onnx.NodeProto) -> None:
        """Follow a parameter through transposition and axes of size 1."""
        view = self._views.get(node.input[0]) if node.input else None
        after = self._shape.get(node.output[0], ())
        if view is None or node.op_type not in ("Transpose", "Reshape", "Unsqueeze", "Squeeze"):
            return
        before = self._shape[node.input[0]]
        if node.op_type == "Transpose":
            order = integers_of(node, "perm") or list(reversed(range(len(before))))
            self._shape.setdefault(node.output[0], tuple(before[axis] for axis in order))
            axes = tuple(view.axes[axis] for axis in order)
        else:
            wide = iter([axis for axis, size in zip(view.axes, before, strict=True) if size > 1])
            if [size for size in before if size > 1] != [size for size in after if size > 1]:
                return
            axes = tuple(next(wide) if size > 1 else None for size in after)
        self._views[node.output[0]] = View(view.parameter, axes)

    # what the operator rules are written in

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shape[name]

    def axis(self, name: str) -> int:
        """Where the tensor's channels lie."""
        return self._channels[name][0]

    def channels(self, name: str) -> Ids:
        return self._channels[name][1]

    def along(self, name: str, axis: int) -> Ids:
        """The identities along `axis`; channels that lie along another axis are frozen."""
        where, ids = self._channels[name]
        if where == axis % len(self._shape[name]):
            return ids
        reason = "an operator works along another axis than the channels'"
        self.identities.freeze(ids, reason)
        return self.identities.frozen(self._shape[name][axis], reason)

    def has_channels(self, name: str) -> bool:
        return name in self._channels

    def constant(self, name: str) -> NDArray[np.generic] | None:
        item = self._constants.get(name)
        return None if item is None else numpy_helper.to_array(item)

    def parameter(self, name: str) -> str | None:
        """The state-dict name behind a tensor of the graph."""
        view = self._views.get(name)
        return None if view is None else view.parameter

    def emit(self, name: str, ids: Ids, axis: int = 1) -> None:
        self._channels[name] = (axis, ids)

    def use(
        self, tensor: str, axis: int, ids: Ids, *, produces: bool = False, gate: bool = False
    ) -> None:
        """The rows of a weight along `axis` belong to these channels."""
        view = self._views.get(tensor)
        dim = None if view is None else view.axes[axis]
        if view is None or dim is None:
            self.identities.freeze(ids, f"meets {tensor}, a constant that is not a parameter")
        else:
            self._record(Use(view.parameter, dim, ids, produces, gate))

    def count(self, attribute: str, ids: Ids) -> None:
        """An integer of the module, or of the graph alone, is how many of these there are."""
        self._record(Use(attribute, 0, ids, produces=False, gate=False))

    def bound(self, node: onnx.NodeProto, index: int, ids: Ids) -> None:
        """Input `index` of the node, or its next item, is how many of these channels there are."""
        counters = self.bounds.setdefault((node.name, index), [])
        counters.append(f"{GRAPH_ONLY}{node.name}.{index}.{len(counters)}")
        self.count(counters[-1], ids)

    def _record(self, use: Use) -> None:
        earlier = self._use_at.setdefault((use.tensor, use.dim), len(self.uses))
        if earlier == len(self.uses):
            self.uses.append(use)
            return
        known = self.uses[earlier].ids  # a weight shared by two layers
        if len(known) == len(use.ids):
            self.identities.tie(known, use.ids)
            return
        for ids in (known, use.ids):
            self.identities.freeze(ids, f"{use.tensor} counts unlike channels")

    def feeds_only_norm(self, name: str) -> bool:
        """Whether a gate after the norm, which has a scale of its own, does for `name` too."""
        readers = self._consumers.get(name, [])
        norms = ("BatchNormalization", "InstanceNormalization")
        if len(readers) != 1 or readers[0].op_type not in norms:
            return False
        scale = readers[0].input[1]
        return readers[0].op_type == norms[0] or self.parameter(scale) is not None

    def scopes(self, node: onnx.NodeProto) -> Iterator[str]:
        """Paths of the modules around the node, innermost first; "" is the whole network.

        The exporter does not say for every node whose code made it: then its readers are asked.
        """
        readers = (reader for name in node.output for reader in self._consumers.get(name, ()))
        for each in (node, *readers):
            path = each.doc_string
            while path:
                yield path
                path = path.rpartition(".")[0]
        yield ""

    def give_up(self, node: onnx.NodeProto, reason: str) -> None:
        """Freeze every channel that touches the node; its outputs start frozen."""
        for name in node.input:
            if name in self._channels:
                self.identities.freeze(self._channels[name][1], reason)
        for name in node.output:
            shape = self._shape.get(name, ())
            axis = min(1, max(len(shape) - 1, 0))
            ids = self.identities.frozen(shape[axis] if shape else 1, reason)
            self._channels[name] = (axis, ids)


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    for item in (*graph.input, *graph.output, *graph.value_info):
        dims = item.type.tensor_type.shape.dim
        shapes.setdefault(item.name, tuple(dim.dim_value for dim in dims))
    return shapes


def integers_of(node: onnx.NodeProto, name: str) -> list[int] | None:
    """An attribute that is a list of integers."""
    return next((list(item.ints) for item in node.attribute if item.name == name), None)


Rule = Callable[[Propagation, onnx.NodeProto], None]
