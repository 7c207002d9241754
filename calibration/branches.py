"""Residual branches that may go as a whole, and a graph without them.

`y = f(x) + x`: when all channels of the groups inside of f are gone, f is a constant. It is then
let go with all of its layers, and the sum is its other side, the skip, alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import GroupsError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Branch:
    """Layers and channel groups that lie between a skip and the sum it ends in."""

    name: str  # the last of the layers: what its module gives is all that the branch adds
    groups: tuple[str, ...]  # prunable ones that lie in the branch alone; they go together
    layers: tuple[str, ...]  # paths of its modules that have weights
    sum_node: str  # of the skeleton
    skip: str  # the sum's other input, a tensor of the skeleton

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "groups": list(self.groups),
            "layers": list(self.layers),
            "sum_node": self.sum_node,
            "skip": self.skip,
        }

    @classmethod
    def from_json(cls, item: Any) -> Branch:
        """ValueError, KeyError or TypeError if the document is no branch."""
        found = cls(
            item["name"],
            tuple(item["groups"]),
            tuple(item["layers"]),
            item["sum_node"],
            item["skip"],
        )
        texts = (found.name, found.sum_node, found.skip, *found.groups, *found.layers)
        if not all(type(text) is str for text in texts) or not found.groups:
            raise ValueError(f"{item!r} is no branch")
        if found.name not in found.layers:
            raise ValueError(f"branch {found.name} does not end in a layer of its own")
        return found


def check_branches(branches: Iterable[Branch], prunable: Collection[str]) -> None:
    """ValueError unless the branches have prunable groups, and none of them twice."""
    seen: set[str] = set()
    for branch in branches:
        for name in branch.groups:
            if name not in prunable or name in seen:
                raise ValueError(f"branch {branch.name} cannot have group {name}")
            seen.add(name)


def removed(branches: Iterable[Branch], kept: Mapping[str, int]) -> tuple[Branch, ...]:
    """The branches of which nothing is kept (channels by group).

    GroupsError where a group keeps nothing and there is no branch that goes with it.
    """
    gone = tuple(b for b in branches if not any(kept[name] for name in b.groups))
    allowed = {name for branch in gone for name in branch.groups}
    empty = [name for name, count in kept.items() if not count and name not in allowed]
    if empty:
        raise GroupsError(
            f"group {empty[0]} keeps no channel, and no residual branch goes with it",
            fix="run: pipeline trace --remove-blocks, or keep a channel",
        )
    return gone


def membership(branches: Collection[Branch], names: tuple[str, ...]) -> NDArray[np.float64]:
    """(B, G): each branch's mean over its groups."""
    table = np.zeros((len(branches), len(names)))
    for row, branch in enumerate(branches):
        table[row, [names.index(name) for name in branch.groups]] = 1 / len(branch.groups)
    return table


def members(branches: Iterable[Branch], names: tuple[str, ...]) -> list[list[int]]:
    """For each branch, where its groups stand among `names`."""
    return [[names.index(name) for name in branch.groups] for branch in branches]


def check_graph(graph: onnx.GraphProto, branches: Iterable[Branch]) -> None:
    """GroupsError unless the graph has each branch's sum with its skip."""
    inputs = {node.name: tuple(node.input) for node in graph.node}
    for branch in branches:
        if branch.skip not in inputs.get(branch.sum_node, ()):
            raise GroupsError(
                f"the skeleton has no sum {branch.sum_node} of {branch.skip}",
                fix="run: pipeline trace",
            )


def cut_branches(graph: onnx.GraphProto, branches: Iterable[Branch]) -> frozenset[str]:
    """Let each branch's sum be its skip, drop what is then needed no more; the names with it."""
    skips = {branch.sum_node: branch.skip for branch in branches}
    before = {name for node in graph.node for name in node.input}
    instead: dict[str, str] = {}  # output of a sum -> what stands for it
    nodes = []
    for node in graph.node:  # in the order of computation
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
        if node.name in skips:
            skip = skips[node.name]
            instead[node.output[0]] = instead.get(skip, skip)
        else:
            nodes.append(node)
    return frozenset(before - keep_needed(graph, nodes))


def keep_needed(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Let the graph's nodes be those of `nodes`, in order, that its outputs need; what is read."""
    needed, read = [], {item.name for item in graph.output}
    for node in reversed(nodes):
        if read.intersection(node.output):
            read.update(node.input)
            needed.append(node)
    del graph.node[:]
    graph.node.extend(reversed(needed))
    return read
