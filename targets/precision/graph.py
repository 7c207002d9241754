"""Edits of ONNX graphs that every rewriting needs."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from typing import Any


def replace_nodes(graph: Any, nodes: Sequence[Any]) -> None:
    """Give a GraphProto these nodes, in this order, instead of those it has."""
    # a message that was deleted from its list may not be put back, so copies are
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def sort_nodes(graph: Any) -> None:
    """Put each node after those whose outputs it reads, and else leave the order as it is."""
    nodes = list(graph.node)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    readers: dict[int, list[int]] = defaultdict(list)
    missing = []
    for index, node in enumerate(nodes):
        read_from = {makers[name] for name in node.input if name in makers}
        missing.append(len(read_from))
        for maker in read_from:
            readers[maker].append(index)
    ready = [index for index, count in enumerate(missing) if count == 0]
    ordered = []
    while ready:
        index = heapq.heappop(ready)
        ordered.append(nodes[index])
        for reader in readers[index]:
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    assert len(ordered) == len(nodes), "a graph without cycles was to be sorted"
    replace_nodes(graph, ordered)
