from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from calibration.counts import Count
from calibration.widths import Plan
from pipeline.errors import GroupsError
from pipeline.pruning.filters import l1_norm
from pipeline.pruning.magnitude import GivenPlan, bn_scale, group_norm, scores_by
from pipeline.pruning.pruner import Method, make_pruner
from pipeline.pruning.select import Selector, narrowest, priced
from pipeline.pruning.wgates import GateSettings

from .networks import Network, named, scaled_network

SETTINGS = GateSettings(gate_lr=1.0, weight_lr=0.02, weight_decay=1e-4, dual_lr=0.8)


@pytest.fixture(scope="module")
def network() -> Network:
    return scaled_network()


def test_the_l1_norm_is_the_mean_weight_of_a_filter(network: Network) -> None:
    found = scores_by(l1_norm, network.model, network.skeleton)
    assert found["a"] == pytest.approx(network.model.a.weight.detach().abs().mean((1, 2, 3)))


def test_the_group_norm_is_of_all_that_goes_with_a_channel(network: Network) -> None:
    model = network.model
    squares = (
        model.a.weight.square().sum((1, 2, 3))
        + model.n.weight.square()
        + model.b.weight.square().sum((0, 2, 3))
    )
    found = scores_by(group_norm, model, network.skeleton)
    assert found["a"] == pytest.approx(squares.sqrt().detach())
    last = model.b.weight.square().sum((1, 2, 3)) + model.head.weight.square().sum(0)
    assert found["b"] == pytest.approx(last.sqrt().detach())


def test_the_scale_of_a_norm_is_that_of_each_channel(network: Network) -> None:
    group = next(g for g in network.skeleton.groups.prunable if g.name == "a")
    with torch.no_grad():
        assert torch.equal(bn_scale(network.model, group), network.model.n.weight.abs())
    without = next(g for g in network.skeleton.groups.prunable if g.name == "b")
    with pytest.raises(GroupsError, match="group b has a batch norm"):
        bn_scale(network.model, without)


def test_a_tied_group_has_the_mean_scale_of_its_norms() -> None:
    network = named("wgates:resnet20")
    group = next(g for g in network.skeleton.groups.prunable if g.name == "conv1")
    names = ["bn1", *(f"layer1.{index}.bn2" for index in range(3))]
    scales = [network.model.get_parameter(f"{name}.weight").abs() for name in names]
    with torch.no_grad():
        torch.testing.assert_close(bn_scale(network.model, group), torch.stack(scales).mean(0))


@pytest.mark.parametrize("method", [name for name in get_args(Method) if name != "wgates"])
def test_every_baseline_fills_the_budget_without_training(method: Method) -> None:
    network = named("wgates:resnet20")
    count = Count.macs(network.skeleton)
    aim = count.at(network.skeleton.groups.full()) // 2
    selector = Selector(network.skeleton, priced(count), 8)
    pruner = make_pruner(method, network.model, network.skeleton, SETTINGS, multiple=8)
    assert pruner.solving_epochs(10) == 0
    plan = pruner.propose(selector, aim)
    assert 0.75 * aim <= count.at(plan.widths()) <= aim
    assert plan == pruner.propose(selector, aim)


def test_uniform_and_random_have_the_same_widths_and_other_channels() -> None:
    network = named("wgates:resnet20")
    count = Count.macs(network.skeleton)
    aim = count.at(network.skeleton.groups.full()) // 2
    selector = Selector(network.skeleton, priced(count), 8)
    uniform, random = (
        make_pruner(method, network.model, network.skeleton, SETTINGS, multiple=8).propose(
            selector, aim
        )
        for method in ("uniform", "random")
    )
    assert uniform.widths() == random.widths()
    assert uniform != random


@pytest.mark.parametrize("method", ["l1", "uniform"])
def test_no_group_gets_narrower_than_the_least_width(method: Method) -> None:
    network = named("wgates:resnet20")
    groups = network.skeleton.groups
    count = Count.macs(network.skeleton)
    selector = Selector(network.skeleton, priced(count), 8, min_width=0.6)
    pruner = make_pruner(method, network.model, network.skeleton, SETTINGS, multiple=8)
    floor = narrowest(groups, 8, 0.6)
    assert all(np.array(floor.kept) >= 0.6 * groups.full().as_array())
    assert pruner.propose(selector, 1.0).widths() == floor
    plan = pruner.propose(selector, 0.8 * count.at(groups.full()))
    assert all(np.array(plan.widths().kept) >= floor.as_array())


def test_a_given_plan_is_taken_as_it_is_and_must_fit_the_network() -> None:
    network = named("wgates:resnet20")
    groups, count = network.skeleton.groups, Count.macs(network.skeleton)
    plan = groups.first_channels(groups.floor(8), network.skeleton.sha256)
    selector = Selector(network.skeleton, priced(count), 8)
    assert GivenPlan(network.model, network.skeleton, plan).propose(selector, 1e12) is plan
    with pytest.raises(GroupsError, match="for other groups"):
        GivenPlan(network.model, network.skeleton, Plan(plan.skeleton_sha256, {"conv1": (0,)}))
    with pytest.raises(GroupsError, match="of another skeleton"):
        GivenPlan(network.model, network.skeleton, Plan("0" * 64, plan.kept))
