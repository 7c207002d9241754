"""MACs and parameters as objectives: equal to what the networks really hold, and their slopes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import shape_inference
from torch import nn

from calibration.candidates import Slicer
from calibration.cost import NetworkCost, parameter_count
from calibration.counts import Count
from calibration.widths import Plan
from pipeline.pruning.surgery import shrink

from ..pipeline.pruning.networks import CLASSES, Net, Network, conv, named, pooled, traced
from .chain import CLASSES as CHAIN
from .chain import chain
from .test_cost import counted_macs


def grouped() -> Network:
    """A grouped convolution between plain ones, and a depthwise one with two filters an input."""
    return traced(
        Net(
            lambda s, x: s.head(pooled(F.relu(s.d(F.relu(s.c(F.relu(s.b(F.relu(s.a(x)))))))))),
            a=conv(3, 16),
            b=conv(16, 32, groups=16),
            c=conv(32, 64, groups=4),
            d=conv(64, 24),
            head=nn.Linear(24, CLASSES),
        )
    )


def separable() -> Network:
    """Depthwise convolutions with batch norms, each followed by a pointwise one."""

    def block(inputs: int, outputs: int) -> nn.Module:
        depthwise = conv(inputs, inputs, groups=inputs, bias=False)
        pointwise = conv(inputs, outputs, 1, bias=False)
        norms = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        return nn.Sequential(depthwise, norms[0], nn.ReLU(), pointwise, norms[1], nn.ReLU())

    return traced(
        Net(
            lambda s, x: s.head(pooled(s.two(s.one(F.relu(s.stem(x)))))),
            stem=conv(3, 24),
            one=block(24, 40),
            two=block(40, 56),
            head=nn.Linear(56, CLASSES),
        )
    )


NETWORKS = {
    "resnet20": lambda: named("wgates:resnet20"),
    "depthwise": separable,
    "grouped": grouped,
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]()


def plans(network: Network) -> list[Plan]:
    return [network.full_plan(), *(network.plan(seed) for seed in range(3))]


def onnx_counts(model: bytes, trained: set[str]) -> tuple[int, int]:
    """(multiply-adds an image, trained parameters) by the shapes in the graph alone."""
    graph = shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    outputs = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    macs = 0
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            pixels = math.prod(outputs[node.output[0]][2:])
            assert pixels > 0
            macs += pixels * math.prod(shapes[node.input[1]])
        assert node.op_type not in ("MatMul", "ConvTranspose")
    return macs, sum(math.prod(shape) for name, shape in shapes.items() if name in trained)


def test_counts_are_those_of_the_sliced_graph(network: Network) -> None:
    skeleton = network.skeleton
    macs, parameters, slicer = Count.macs(skeleton), Count.parameters(skeleton), Slicer(skeleton)
    for plan in plans(network):
        found = macs.at(plan.widths()), parameters.at(plan.widths())
        assert found == onnx_counts(slicer.slice(plan), set(skeleton.parameters))


def test_counts_are_those_of_the_module_after_surgery(network: Network) -> None:
    skeleton = network.skeleton
    macs, parameters = Count.macs(skeleton), Count.parameters(skeleton)
    for plan in plans(network):
        small = shrink(network.model, skeleton, plan)
        assert macs.at(plan.widths()) == counted_macs(small, network.images)
        assert parameters.at(plan.widths()) == sum(p.numel() for p in small.parameters())


def test_counts_are_those_of_the_certificate(network: Network) -> None:
    skeleton = network.skeleton
    for plan in plans(network):
        widths = plan.widths()
        assert Count.macs(skeleton).at(widths) == NetworkCost.of(skeleton).macs(widths)
        assert Count.parameters(skeleton).at(widths) == parameter_count(skeleton, widths)


@pytest.mark.parametrize("make", [Count.macs, Count.parameters])
def test_slopes_are_those_of_finite_differences(network: Network, make: type[Count]) -> None:
    count = make(network.skeleton)
    full = torch.from_numpy(network.skeleton.groups.full().as_array()).double()
    kept = full * torch.linspace(0.3, 1.0, len(full), dtype=torch.float64)
    assert torch.autograd.gradcheck(count, (kept[None].requires_grad_(),), eps=1e-3, rtol=1e-6)


def test_a_row_for_each_width_vector_and_float32_is_enough_for_them() -> None:
    skeleton = chain((32, 48, 64))
    kept = np.random.default_rng(0).integers(1, 33, (50, 3))
    found = Count.macs(skeleton)(torch.from_numpy(kept).float())
    assert found.shape == (50,)
    expected = NetworkCost.of(skeleton).layer_macs(kept.astype(float)).sum(1)
    assert (found.numpy() == expected).all()


def test_counts_beyond_float32_stay_exact() -> None:
    skeleton = chain((8,))
    stem, head = skeleton.layers
    large = replace(skeleton, layers=(replace(stem, positions=10**9 + 7), head))
    assert Count.macs(large).at(skeleton.groups.full()) == (10**9 + 7) * 9 * 3 * 8 + 8 * CHAIN
