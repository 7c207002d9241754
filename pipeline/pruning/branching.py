"""Which residual branches of a network may go as a whole, proved like everything that is cut.

In the skeleton: a sum of two tensors of one shape, where all that is computed for one of them
alone multiplies only by weights that the branch's own channel groups can empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from torch import nn

from calibration.branches import Branch
from calibration.skeleton import Skeleton
from calibration.widths import GRAPH_ONLY, ChannelGroup, ChannelGroups
from pipeline.pruning.emptied import can_be_emptied

# of nothing, these make nothing
KEEPS_ZEROS = frozenset({"Relu", "LeakyRelu", "HardSwish", "Identity", "Dropout", "Cast"})
ENDS = ("BatchNormalization", "Conv")


class Graph:
    """A skeleton's nodes: what reads a tensor, what makes it, and what depends on the image."""

    def __init__(self, skeleton: Skeleton) -> None:
        graph = skeleton.proto().graph
        self.nodes = list(graph.node)
        self.outputs = {item.name for item in graph.output}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[str]] = {}  # tensor -> names of the nodes that read it
        self.moving = {item.name for item in graph.input}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node.name)
            if self.moving.intersection(node.input):
                self.moving.update(node.output)
        self.shapes = {
            item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim]
            for item in (*graph.input, *graph.output, *graph.value_info)
        }

    def sums(self) -> Iterator[onnx.NodeProto]:
        """Additions of two different tensors that depend on the image and have one shape."""
        for node in self.nodes:
            if node.op_type == "Add" and len(set(node.input)) == 2:
                shapes = [self.shapes.get(name) for name in (*node.input, *node.output)]
                same = shapes[0] is not None and shapes[0] == shapes[1] == shapes[2]
                if same and self.moving.issuperset(node.input):
                    yield node

    def only_for(self, source: str, reader: str) -> set[str]:
        """Names of the nodes whose results serve nothing but the tensor that `reader` reads."""
        if self.readers[source] != [reader] or source in self.outputs:
            return set()
        found: set[str] = set()
        for node in reversed(self.nodes):
            if source in node.output:
                found.add(node.name)
            elif not self.outputs.intersection(node.output):
                readers = [each for name in node.output for each in self.readers.get(name, [])]
                if readers and found.issuperset(readers):
                    found.add(node.name)
        return found

    def reads_only(self, tensor: str, nodes: set[str]) -> bool:
        return nodes.issuperset(self.readers.get(tensor, [""]))


@dataclass(frozen=True)
class Found:
    """Branches that may go, and the sums with groups before them that cannot lose one, and why."""

    branches: tuple[Branch, ...]
    refused: Mapping[str, str]  # first group before the sum -> reason


class _Refusal(Exception):  # noqa: N818  never leaves this module
    pass


def find_branches(model: nn.Module, skeleton: Skeleton) -> Found:
    """What the graph says; nothing is proved yet."""
    graph, branches, refused = Graph(skeleton), list[Branch](), dict[str, str]()
    names = set(model.state_dict())
    for node in graph.sums():
        sides = [(name, graph.only_for(name, node.name)) for name in node.input]
        inside = [groups_in(graph, skeleton.groups, nodes) for _, nodes in sides]
        if not any(inside):
            continue
        which = 0 if inside[0] else 1
        first = inside[which][0].name
        try:
            if all(inside):
                raise _Refusal("is in a sum both sides of which have groups of their own")
            if {g.name for g in inside[which]} & {n for b in branches for n in b.groups}:
                raise _Refusal("has another branch that may go inside of it")
            source, nodes = sides[which]
            layers = _layers(model, graph, names, nodes)
            _check_layers(skeleton, inside[which], layers)
            branch = Branch(
                _last(graph, source, names),
                tuple(group.name for group in inside[which]),
                layers,
                node.name,
                node.input[1 - which],
            )
            if graph.outputs.intersection(node.output):
                raise _Refusal("ends in the network's output")
            branches.append(branch)
        except _Refusal as refusal:
            refused[first] = str(refusal)
    return Found(tuple(branches), refused)


def groups_in(graph: Graph, groups: ChannelGroups, nodes: set[str]) -> list[ChannelGroup]:
    """Prunable groups all of whose weights are read by these nodes alone."""
    return [g for g in groups.prunable if nodes and _inside(graph, g, nodes)]


def _inside(graph: Graph, group: ChannelGroup, nodes: set[str]) -> bool:
    in_graph = [piece.tensor for piece in group.slices if piece.tensor in graph.readers]
    return bool(in_graph) and all(graph.reads_only(tensor, nodes) for tensor in in_graph)


def _layers(model: nn.Module, graph: Graph, names: set[str], nodes: set[str]) -> tuple[str, ...]:
    """Paths of the modules whose weights the nodes read, in the graph's order."""
    found: dict[str, None] = {}
    for node in graph.nodes:
        for tensor in node.input if node.name in nodes else ():
            if tensor in names:
                if not graph.reads_only(tensor, nodes):
                    raise _Refusal(f"shares {tensor} with others")
                found.setdefault(tensor.rpartition(".")[0])
    for path in found:
        layer = model.get_submodule(path)
        if not can_be_emptied(layer):
            raise _Refusal(f"has weights of {path or 'the model'}, a {type(layer).__name__}")
    return tuple(found)


def _check_layers(skeleton: Skeleton, groups: list[ChannelGroup], layers: tuple[str, ...]) -> None:
    """Without the groups' channels there must be nothing left to multiply by."""
    rows: dict[tuple[str, int], int] = {}
    for group in groups:
        for piece in group.slices:
            key = (piece.tensor, piece.dim)
            rows[key] = rows.get(key, 0) + len(piece.rows) * piece.rows_per_channel
    for layer in skeleton.layers:
        if layer.tensor.rpartition(".")[0] in layers and not any(
            rows.get((layer.tensor, dim)) == size for dim, size in enumerate(layer.shape)
        ):
            raise _Refusal(f"has {layer.tensor}, whose channels are not its own")
    for group in groups:
        for piece in group.slices:
            owner = piece.tensor.rpartition(".")[0]
            if not piece.tensor.startswith(GRAPH_ONLY) and owner not in layers:
                raise _Refusal(f"has its channels counted by {piece.tensor}")


def _last(graph: Graph, source: str, names: set[str]) -> str:
    """Path of the layer whose output is what the branch adds, but for an activation."""
    node = graph.makers[source]
    while node.op_type in KEEPS_ZEROS:
        node = graph.makers[node.input[0]]
    if node.op_type not in ENDS or node.input[1] not in names:
        raise _Refusal(f"ends in {node.op_type}, not in a layer")
    return str(node.input[1]).rpartition(".")[0]
