from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from calibration.errors import GroupsError
from calibration.widths import Plan
from pipeline.pruning.surgery import shrink

from .networks import Network, named


@pytest.fixture(scope="module")
def network() -> Network:
    return named("wgates:resnet20")


def test_a_plan_is_applied_once(network: Network) -> None:
    plan = network.plan(0)
    small = shrink(network.model, network.skeleton, plan)
    with pytest.raises(GroupsError, match="applied once, to the dense network"):
        shrink(small, network.skeleton, plan)


def test_a_plan_of_another_skeleton_is_refused(network: Network) -> None:
    plan = replace(network.plan(0), skeleton_sha256="0" * 64)
    with pytest.raises(GroupsError, match="another skeleton"):
        shrink(network.model, network.skeleton, plan)


def test_a_plan_of_other_groups_or_channels_is_refused(network: Network) -> None:
    plan = network.full_plan()
    first, *others = plan.kept
    fewer = Plan(plan.skeleton_sha256, {name: plan.kept[name] for name in others})
    with pytest.raises(GroupsError, match="other groups"):
        shrink(network.model, network.skeleton, fewer)
    wider = Plan(plan.skeleton_sha256, {**plan.kept, first: (0, 16)})
    with pytest.raises(GroupsError, match="keeps channel 16 of 16"):
        shrink(network.model, network.skeleton, wider)


def test_another_model_is_refused(network: Network) -> None:
    with pytest.raises(GroupsError, match="the model has no tensor conv1.weight"):
        shrink(nn.Linear(3, 4), network.skeleton, network.plan(0))
    other = named("wgates:resnet32")
    with pytest.raises(GroupsError, match="the model has no tensor layer1.3.conv1.weight"):
        shrink(network.model, other.skeleton, other.plan(0))


def test_the_given_model_is_left_untouched(network: Network) -> None:
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    small = shrink(network.model, network.skeleton, network.plan(0))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.fill_(7)
    after = network.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_compact_model_says_its_own_sizes_and_holds_the_kept_rows(network: Network) -> None:
    plan = network.plan(3)
    small = shrink(network.model, network.skeleton, plan)
    inner, stream = plan.kept["layer1.0.conv1"], plan.kept["conv1"]
    block = small.layer1[0]
    assert (block.conv1.in_channels, block.conv1.out_channels) == (len(stream), len(inner))
    assert block.bn1.num_features == len(inner)
    assert small.linear.in_features == len(plan.kept["layer3.0.conv2"])
    dense = network.model.layer1[0].conv1.weight
    assert torch.equal(block.conv1.weight, dense[list(inner)][:, list(stream)])
    means = network.model.layer1[0].bn1.running_mean
    assert torch.equal(block.bn1.running_mean, means[list(inner)])


def test_frozen_weights_stay_frozen_and_the_small_model_trains(network: Network) -> None:
    network.model.conv1.weight.requires_grad_(False)
    try:
        small = shrink(network.model, network.skeleton, network.plan(0)).train()
    finally:
        network.model.conv1.weight.requires_grad_(True)
    assert not small.conv1.weight.requires_grad
    assert small.layer1[0].conv1.weight.requires_grad
    small(network.images).sum().backward()
    assert small.linear.weight.grad.shape == small.linear.weight.shape
