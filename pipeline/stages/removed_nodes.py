"""Nodes of a graph some of whose branches went: they keep the names that they had before.

Which nodes stay in fp32 is settled on the dense graph, by name; names count nodes by operator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import onnx

from calibration.candidates import Slicer
from pipeline.run import Run
from pipeline.stages.common import plan_of, skeleton_of


def cut_nodes(run: Run) -> dict[str, list[str]]:
    """Operator -> names of the nodes that the plan leaves; empty if it removes no branch."""
    skeleton, plan = skeleton_of(run), plan_of(run)
    if not skeleton.groups.removed(plan.widths()):
        return {}
    found: dict[str, list[str]] = defaultdict(list)
    for node in onnx.load_from_string(Slicer(skeleton).slice(plan)).graph.node:
        found[node.op_type].append(node.name)
    return found


def named_as_before(run: Run, model: bytes) -> bytes:
    """The compact network's graph with the names that its nodes have in the dense one's."""
    before = cut_nodes(run)
    if not before:
        return model
    proto = onnx.load_from_string(model)
    after: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in proto.graph.node:
        after[node.op_type].append(node)
    for operator, nodes in after.items():
        names = before.get(operator, [])
        if len(names) == len(nodes):  # else the exporter fuses some, as it does in the dense graph
            for node, name in zip(nodes, names, strict=True):
                node.name = name
    renamed: bytes = proto.SerializeToString()
    return renamed


def still_there(run: Run, names: Sequence[str]) -> tuple[str, ...]:
    """Of these nodes, those that did not go with a branch."""
    left = {name for each in cut_nodes(run).values() for name in each} if names else set()
    return tuple(name for name in names if not left or name in left)
