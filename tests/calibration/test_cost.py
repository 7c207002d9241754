from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.cost import NetworkCost, parameter_count
from calibration.skeleton import Layer, Skeleton
from calibration.widths import WidthVector
from pipeline.pruning.surgery import shrink

from ..pipeline.pruning.networks import CLASSES, NAMED, Net, conv, named, pooled, traced

IMAGENET = 224 * 224 / 64 / 64  # of the pixels of every layer, where traced at 64


def counted_macs(model: nn.Module, images: Tensor) -> int:
    """Multiply-adds an image of convolutions and linear layers, by what the layers really do."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += layer.weight.numel() * output.shape[2:].numel()

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(images[:1])
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("spec", NAMED)
def test_macs_and_parameters_are_those_of_the_shrunk_model(spec: str) -> None:
    network = named(spec)
    cost = NetworkCost.of(network.skeleton)
    for plan in (network.full_plan(), network.plan(5)):
        small = shrink(network.model, network.skeleton, plan)
        assert cost.macs(plan.widths()) == counted_macs(small, network.images)
        parameters = sum(parameter.numel() for parameter in small.parameters())
        assert parameter_count(network.skeleton, plan.widths()) == parameters


def test_a_layer_used_twice_counts_twice_and_owns_its_weights_once() -> None:
    network = traced(
        Net(
            lambda s, x: s.head(pooled(F.relu(s.b(F.relu(s.b(F.relu(s.a(x)))))))),
            a=conv(3, 16),
            b=conv(16, 16),
            head=nn.Linear(16, CLASSES),
        )
    )
    cost = NetworkCost.of(network.skeleton)
    for plan in (network.full_plan(), network.plan(0)):
        small = shrink(network.model, network.skeleton, plan)
        assert cost.macs(plan.widths()) == counted_macs(small, network.images)
        parameters = sum(parameter.numel() for parameter in small.parameters())
        assert parameter_count(network.skeleton, plan.widths()) == parameters


def test_grouped_and_depthwise_layers_count_their_own_inputs() -> None:
    network = traced(
        Net(
            lambda s, x: s.head(pooled(F.relu(s.c(F.relu(s.b(F.relu(s.a(x)))))))),
            a=conv(3, 16),
            b=conv(16, 32, groups=16),
            c=conv(32, 64, groups=4),
            head=nn.Linear(64, CLASSES),
        )
    )
    cost = NetworkCost.of(network.skeleton)
    assert len(network.skeleton.groups.prunable) == 2
    for seed in range(3):
        plan = network.plan(seed)
        small = shrink(network.model, network.skeleton, plan)
        assert cost.macs(plan.widths()) == counted_macs(small, network.images)


def at_imagenet_size(skeleton: Skeleton) -> Skeleton:
    """224 pixels and 1000 classes: every convolution's map is an exact multiple of that at 64."""
    *convs, head = skeleton.layers
    layers = [replace(layer, positions=round(layer.positions * IMAGENET)) for layer in convs]
    return replace(skeleton, layers=(*layers, Layer(head.tensor, 1, (1000, head.shape[1]))))


@pytest.mark.parametrize(
    ("spec", "mega_macs"),
    [
        ("torchvision:resnet18", 1814.1),
        ("torchvision:resnet50", 4089.2),
        ("torchvision:mobilenet_v2", 300.8),
    ],
)
def test_published_macs_of_dense_networks(spec: str, mega_macs: float) -> None:
    skeleton = at_imagenet_size(named(spec).skeleton)
    found = NetworkCost.of(skeleton).macs(skeleton.groups.full())
    assert found / 1e6 == pytest.approx(mega_macs, abs=0.05)


def test_the_published_2g_resnet50_has_its_macs() -> None:
    """The widths of MetaPruning's 2G ResNet-50 and the MACs they give (methods, 4)."""
    skeleton = at_imagenet_size(named("torchvision:resnet50").skeleton)
    streams = dict(zip((64, 256, 512, 1024, 2048), (50, 156, 296, 624, 2048), strict=True))
    mids = iter([37, 37, 40, 89, 81, 108, 55, 248, 194, 163, 125, 232, 156, 404, 404, 358])
    mid_of: dict[str, int] = {}
    kept = []
    for group in skeleton.groups.prunable:
        block = group.name.rpartition(".")[0]
        if group.kind == "stream" or group.name == "conv1":
            kept.append(streams[group.channels])
        else:  # both inner widths of a bottleneck are one number
            kept.append(mid_of[block] if block in mid_of else mid_of.setdefault(block, next(mids)))
    assert next(mids, None) is None
    macs = NetworkCost.of(skeleton).macs(WidthVector(skeleton.groups.names, tuple(kept)))
    assert macs / 1e6 == pytest.approx(1989.9, abs=0.05)


def test_layer_macs_are_a_row_for_each_width_vector() -> None:
    skeleton = named("wgates:resnet20").skeleton
    cost = NetworkCost.of(skeleton)
    full, floor = skeleton.groups.full().as_array(), skeleton.groups.floor(8).as_array()
    both = cost.layer_macs(np.array([full, floor], float))
    assert both.shape == (2, len(skeleton.layers))
    assert (both[0] >= both[1]).all()
    assert both[0].sum() == cost.macs(skeleton.groups.full())
