"""Nodes of a graph some of whose branches went: they keep the names that they had before.

Which nodes stay in fp32 is settled on the dense graph, by name; names count nodes by operator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import onnx

from calibration.candidates import Slicer
from calibration.skeleton import Skeleton
from calibration.widths import Plan


def named_as_before(model: bytes, skeleton: Skeleton, plan: Plan) -> bytes:
    """The compact network's graph with the names that its nodes have in the dense one's."""
    before = _left(skeleton, plan)
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


def still_there(names: Sequence[str], skeleton: Skeleton, plan: Plan) -> tuple[str, ...]:
    """Of these nodes, those that did not go with a branch."""
    dense = {node.name for node in skeleton.proto().graph.node}
    left = {name for each in _left(skeleton, plan).values() for name in each} or dense
    return tuple(name for name in names if name in left or name not in dense)


def _left(skeleton: Skeleton, plan: Plan) -> dict[str, list[str]]:
    """Operator -> names of the nodes that the plan leaves; empty if it removes no branch."""
    if not skeleton.groups.removed(plan.widths()):
        return {}
    found: dict[str, list[str]] = defaultdict(list)
    for node in onnx.load_from_string(Slicer(skeleton).slice(plan)).graph.node:
        found[node.op_type].append(node.name)
    return found
