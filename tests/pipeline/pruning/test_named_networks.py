"""Every named network: gated = sliced = exported, and pruning nothing changes no bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calibration.candidates import Slicer
from pipeline.export import export_onnx
from pipeline.models.zoo import create_model
from pipeline.pruning.groups import trace
from pipeline.pruning.surgery import shrink
from pipeline.unfused import run_onnx

from .networks import NAMED, named, relative_gap, traced

PADDING = "channels are padded by fixed amounts (padding shortcut)"
PRUNABLE = {  # inner groups + streams
    "wgates:resnet20": 9 + 3,
    "wgates:resnet32": 15 + 3,
    "wgates:resnet56": 27 + 3,
    "wgates:resnet20a": 9 + 1,
    "wgates:resnet32a": 15 + 1,
    "wgates:resnet56a": 27 + 1,
    "torchvision:resnet18": 8 + 4,
    "torchvision:resnet34": 16 + 4,
    "torchvision:resnet50": 1 + 32 + 4,
    "torchvision:mobilenet_v2": 18 + 7,  # expansions and the first and last layer, streams
    "torchvision:vgg16_bn": 12 + 2,  # at 32 pixels the 7x7 pooling of one pixel is not analysed
}


@pytest.mark.parametrize("spec", NAMED)
def test_the_trace_finds_every_group(spec: str) -> None:
    network = named(spec)
    groups = network.skeleton.groups
    assert len(groups.prunable) == PRUNABLE[spec]
    assert len(set(network.groups)) == len(groups.every)
    frozen = {group.frozen for group in groups.every} - {None}
    expected = {"network output"}
    if spec.endswith("a"):
        expected.add(PADDING)
    if spec == "torchvision:vgg16_bn":
        expected.add("operator GatherND is not analysed")
    assert frozen == expected


@pytest.mark.parametrize("spec", NAMED)
def test_gated_equals_sliced(spec: str) -> None:
    network = named(spec)
    gaps = [network.gap(network.plan(seed)) for seed in (0, 1)]
    assert max(gaps) < 1e-9  # float64, of the largest logit


@pytest.mark.parametrize("spec", NAMED)
def test_the_sliced_skeleton_equals_the_export_of_the_shrunk_model(spec: str) -> None:
    network = named(spec)
    plan = network.plan(2)
    small = shrink(network.model, network.skeleton, plan)
    exported = run_onnx(export_onnx(small, network.images), network.images.numpy())
    sliced = run_onnx(Slicer(network.skeleton).slice(plan), network.images.numpy())
    assert relative_gap(sliced, exported) < 1e-4
    with torch.no_grad():
        assert relative_gap(sliced, small(network.images).numpy()) < 1e-4


@pytest.mark.parametrize("spec", NAMED)
def test_pruning_nothing_changes_no_bit(spec: str) -> None:
    network = named(spec)
    plan = network.full_plan()
    skeleton = run_onnx(network.skeleton.onnx_bytes, network.images.numpy())
    sliced = run_onnx(Slicer(network.skeleton).slice(plan), network.images.numpy())
    assert np.array_equal(skeleton, sliced)
    small = shrink(network.model, network.skeleton, plan)
    state = network.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in small.state_dict().items())
    with torch.no_grad():
        assert torch.equal(small(network.images), network.model(network.images))


@pytest.mark.parametrize("spec", [spec for spec in NAMED if spec.endswith("a")])
def test_padding_shortcuts_freeze_what_they_pad(spec: str) -> None:
    groups = named(spec).groups
    streams = [group for group in groups.values() if group.kind == "stream"]
    # the first stage's channels go on through all three; each shortcut adds as many zeros
    assert [group.channels for group in streams] == [16, 16, 32]
    assert [group.frozen for group in streams] == [None, PADDING, PADDING]
    blocks = [group for group in groups.values() if group.kind == "inner" and not group.frozen]
    assert {group.name.split(".")[-1] for group in blocks} == {"conv1"}


def test_inner_keeps_the_streams_full_and_says_so() -> None:
    network = named("wgates:resnet20", residual="inner")
    streams = [group for group in network.groups.values() if group.kind == "stream"]
    assert {group.frozen for group in streams} == {"residual stream, kept full by --residual inner"}
    assert len(streams) == 3
    assert len(network.skeleton.groups.prunable) == 9
    assert network.gap(network.plan(0)) < 1e-9


def test_the_trace_leaves_the_model_as_it_was() -> None:
    model = create_model("wgates:resnet20", 10).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = named("wgates:resnet20")
    trace(model, network.images)
    assert model.training
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_vgg16_bn_with_its_own_classifier() -> None:
    network = traced(create_model("torchvision:vgg16_bn", 10), size=32)
    assert {"classifier.0", "classifier.3"} <= set(network.skeleton.groups.names)
    assert network.gap(network.plan(0)) < 1e-9
