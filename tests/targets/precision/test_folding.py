from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from pipeline.export import export_onnx
from targets.errors import BuildError
from targets.precision.folding import without_batch_norm

from ..tiny_onnx import tiny_model


@pytest.fixture
def skeleton() -> onnx.ModelProto:
    """Two convolutions with batch norm, and one batch norm that follows none."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 3, groups=2),
        nn.BatchNorm2d(4),
        nn.Flatten(),
    )
    for norm in (net[1], net[3], net[5]):
        assert isinstance(norm, nn.BatchNorm2d)
        norm.running_mean.normal_()  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return onnx.load_from_string(export_onnx(net, torch.zeros(1, 3, 8, 8), keep_names=True))


def test_it_computes_the_same_with_fewer_nodes(skeleton: onnx.ModelProto) -> None:
    folded = without_batch_norm(skeleton)
    onnx.checker.check_model(folded, full_check=True)
    images = np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)
    (before,) = ReferenceEvaluator(skeleton).run(None, {"input": images})
    (after,) = ReferenceEvaluator(folded).run(None, {"input": images})
    assert np.allclose(before, after, atol=1e-5)
    norms = [node for node in folded.graph.node if node.op_type == "BatchNormalization"]
    assert len(norms) == 1


def test_convolutions_keep_their_names(skeleton: onnx.ModelProto) -> None:
    names = [node.name for node in skeleton.graph.node if node.op_type == "Conv"]
    folded = without_batch_norm(skeleton)
    assert [node.name for node in folded.graph.node if node.op_type == "Conv"] == names
    assert {entry.domain for entry in folded.opset_import} == {""}
    assert len(folded.graph.value_info) == 0


def test_a_graph_without_batch_norm_is_left_alone() -> None:
    model = onnx.load_from_string(tiny_model())
    assert without_batch_norm(model) is model


def test_a_graph_that_cannot_run_is_refused_with_its_node(skeleton: onnx.ModelProto) -> None:
    culprit = next(node for node in skeleton.graph.node if node.op_type == "Relu")
    culprit.op_type, culprit.domain = "Frobnicate", "com.example"
    skeleton.opset_import.add(domain="com.example", version=1)
    with pytest.raises(BuildError, match="Relu_0"):
        without_batch_norm(skeleton)
