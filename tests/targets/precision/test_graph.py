from __future__ import annotations

import onnx
import pytest
from onnx import helper

from targets.precision.graph import replace_nodes, sort_nodes

from ..wide_range import network


def reordered(order: slice) -> onnx.ModelProto:
    model = onnx.load_from_string(network())
    replace_nodes(model.graph, list(model.graph.node)[order])
    return model


def test_nodes_come_after_what_they_read() -> None:
    original = [node.name for node in reordered(slice(None)).graph.node]
    backwards = reordered(slice(None, None, -1))
    with pytest.raises(onnx.checker.ValidationError, match="topologically"):
        onnx.checker.check_model(backwards)
    sort_nodes(backwards.graph)
    onnx.checker.check_model(backwards)
    assert [node.name for node in backwards.graph.node] == original


def test_an_order_that_is_right_stays() -> None:
    names = ["b", "a", "d", "c"]
    nodes = [helper.make_node("Relu", ["x"], [name], name) for name in names]
    graph = helper.make_graph(nodes, "wide", [], [])
    sort_nodes(graph)
    assert [node.name for node in graph.node] == names


def test_a_node_may_read_a_tensor_twice() -> None:
    both = helper.make_node("Add", ["a", "a"], ["b"], "add")
    graph = helper.make_graph([both, helper.make_node("Relu", ["x"], ["a"], "relu")], "g", [], [])
    sort_nodes(graph)
    assert [node.name for node in graph.node] == ["relu", "add"]


def test_replaced_nodes_keep_their_content() -> None:
    model = onnx.load_from_string(network())
    before = model.SerializeToString(deterministic=True)
    replace_nodes(model.graph, list(model.graph.node))
    assert model.SerializeToString(deterministic=True) == before
