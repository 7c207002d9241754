"""Whole residual branches that go: gated = sliced = exported, and what decides it."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.branches import Branch
from calibration.candidates import Slicer
from calibration.counts import Count
from calibration.errors import GroupsError
from calibration.skeleton import Skeleton
from calibration.widths import Plan, WidthVector
from pipeline.errors import BudgetUnreachableError, ModelError
from pipeline.export import export_onnx
from pipeline.pruning.branching import find_branches
from pipeline.pruning.emptied import Nothing, let_go
from pipeline.pruning.gates import masked, widths_of
from pipeline.pruning.removal import removing, with_removable_branches
from pipeline.pruning.select import Selector, narrowest, priced
from pipeline.pruning.surgery import shrink
from pipeline.pruning.uniform import uniform_widths
from pipeline.pruning.wgates import GateSettings, WGates
from pipeline.unfused import run_onnx

from .networks import (
    CLASSES,
    Net,
    Network,
    conv,
    named,
    pooled,
    relative_gap,
    seeded,
    through,
    traced,
)

BRANCHES = {"wgates:resnet20a": 9, "torchvision:resnet18": 8, "torchvision:mobilenet_v2": 10}
SETTINGS = GateSettings(gate_lr=1.0, weight_lr=0.02, weight_decay=1e-4, dual_lr=0.8, mode="bound")


@functools.cache
def removable(spec: str) -> Network:
    network = named(spec)
    skeleton, refused = with_removable_branches(network.model, network.skeleton)
    assert not refused
    return Network(network.model, skeleton, network.images)


def plans(skeleton: Skeleton) -> list[Plan]:
    """Without every second branch, and without any."""
    every = skeleton.groups.branches
    return [removing(skeleton, some, seed=3) for some in (every[::2], every)]


# named networks


@pytest.mark.parametrize("spec", BRANCHES)
def test_gated_equals_sliced_equals_exported(spec: str) -> None:
    network = removable(spec)
    assert len(network.skeleton.groups.branches) == BRANCHES[spec]
    for plan in plans(network.skeleton):
        gone = network.skeleton.groups.removed(plan.widths())
        assert len(gone) in (BRANCHES[spec], -(-BRANCHES[spec] // 2))
        assert network.gap(plan) < 1e-9  # float64, of the largest logit
        small = shrink(network.model, network.skeleton, plan)
        with torch.no_grad():
            expected = small(network.images).numpy()
        cut = Slicer(network.skeleton).slice(plan)
        exported = export_onnx(small, network.images)
        for graph in (cut, exported):
            found = run_onnx(graph, network.images.numpy())
            assert relative_gap(found, expected) < 1e-4
        both = [onnx.load_from_string(graph).graph for graph in (cut, exported)]
        for operator in ("Conv", "Add", "Gemm"):
            counts = [[node.op_type for node in graph.node].count(operator) for graph in both]
            assert counts[0] == counts[1], operator
        kept = {name.rpartition(".")[0] for name in small.state_dict()}
        assert not kept & {layer for branch in gone for layer in branch.layers}
        counted = Count.parameters(network.skeleton).at(plan.widths())
        assert counted == sum(item.numel() for item in small.parameters())
    assert "Add" not in {node.op_type for node in both[1].node}  # in the last all are gone


def test_a_compact_network_without_branches_trains_and_reloads() -> None:
    network = removable("wgates:resnet20a")
    plan = plans(network.skeleton)[0]
    small = shrink(network.model, network.skeleton, plan).train()
    small(network.images).sum().backward()
    assert all(item.grad is not None for item in small.parameters())
    again = shrink(copy.deepcopy(network.model), network.skeleton, plan)
    again.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(network.images), small.eval()(network.images))


def test_plans_of_a_trace_with_and_without_branches_do_not_mix() -> None:
    network, bare = removable("wgates:resnet20a"), named("wgates:resnet20a")
    assert network.skeleton.sha256 != bare.skeleton.sha256
    with pytest.raises(GroupsError, match="another skeleton"):
        shrink(network.model, bare.skeleton, plans(network.skeleton)[0])


def test_no_other_group_may_be_emptied() -> None:
    network = removable("wgates:resnet20a")
    full = network.full_plan()
    stream = Plan(full.skeleton_sha256, {**full.kept, "conv1": ()})
    for cut in (Slicer(network.skeleton).slice, network.gap):
        with pytest.raises(GroupsError, match="conv1 keeps no channel"):
            cut(stream)


# what may not go


def block(end: nn.Module, *, skip: bool = True) -> Net:
    """conv a, then `end(relu(n(b(x))))` with or without a skip, pool, linear."""
    with seeded():
        return Net(
            lambda s, x: s.head(pooled(F.relu(s.body_of(F.relu(s.a(x)))))),
            a=conv(3, 16),
            body_of=Net(
                lambda s, x: s.end(F.relu(s.n(s.b(x)))) + (x if skip else 0.0),
                b=conv(16, 24),
                n=nn.BatchNorm2d(24),
                end=end,
            ),
            head=nn.Linear(16, CLASSES),
        )


def refusal(model: nn.Module) -> str:
    network = traced(model)
    with pytest.raises(ModelError) as caught:
        with_removable_branches(network.model, network.skeleton)
    return caught.value.message


def test_a_block_of_a_convolution_alone_goes() -> None:
    network = traced(block(conv(24, 16)))
    skeleton, _ = with_removable_branches(network.model, network.skeleton)
    (branch,) = skeleton.groups.branches
    assert (branch.name, branch.groups) == ("body_of.end", ("body_of.b",))
    assert branch.layers == ("body_of.b", "body_of.n", "body_of.end")
    gone = Network(network.model, skeleton, network.images)
    assert gone.gap(removing(skeleton, (branch,))) < 1e-9


def test_a_block_without_a_skip_must_stay() -> None:
    assert "end in no sum with a skip" in refusal(block(conv(24, 16), skip=False))


def test_a_network_without_sums_has_none() -> None:
    assert "end in no sum with a skip" in refusal(through(lambda s, x: F.relu(x)))


def test_a_branch_that_ends_in_a_sigmoid_must_stay() -> None:
    with seeded():
        end = nn.Sequential(conv(24, 16), nn.Sigmoid())  # nothing in, a half out
    assert "that with body_of.b ends in Sigmoid, not in a layer" in refusal(block(end))


def test_layers_whose_shapes_are_not_known_must_stay() -> None:
    with seeded():
        end = nn.Sequential(nn.PReLU(24), conv(24, 16))
    assert "has weights of body_of.end.0, a PReLU" in refusal(block(end))


def test_convolutions_that_the_groups_do_not_empty_must_stay() -> None:
    with seeded():
        model = Net(
            lambda s, x: s.head(pooled(s.join(F.relu(s.a(x))))),
            a=conv(3, 16),
            join=Net(
                lambda s, x: s.end(torch.cat([F.relu(s.b(x)), x], 1)) + x,
                b=conv(16, 24),
                end=conv(40, 16),
            ),
            head=nn.Linear(16, CLASSES),
        )
    assert "has join.end.weight, whose channels are not its own" in refusal(model)


def test_of_two_sides_with_channels_of_their_own_none_goes() -> None:
    with seeded():
        two = [nn.Sequential(conv(16, 24), nn.ReLU(), conv(24, 16)) for _ in range(2)]
        model = Net(
            lambda s, x: s.head(pooled(s.left(s.a(x)) + s.right(s.a(x)))),
            a=conv(3, 16),
            left=two[0],
            right=two[1],
            head=nn.Linear(16, CLASSES),
        )
    assert "both sides of which have groups of their own" in refusal(model)


def test_weights_that_are_used_elsewhere_stay() -> None:
    with seeded():
        shared = conv(16, 16)
        inside = Net(
            lambda s, x: s.end(F.relu(s.b(s.shared(x)))) + x,
            shared=shared,
            b=conv(16, 24),
            end=conv(24, 16),
        )
        model = Net(
            lambda s, x: s.head(pooled(s.inside(s.shared(s.a(x))))),
            a=conv(3, 16),
            shared=shared,
            inside=inside,
            head=nn.Linear(16, CLASSES),
        )
    network = traced(model)
    found = find_branches(network.model, network.skeleton)
    assert not found.branches
    (reason,) = found.refused.values()
    assert reason.endswith("shared.weight with others")


def test_code_that_fails_without_its_branch_is_found_out_by_the_proof() -> None:
    def picky(net: Net, x: Tensor) -> Tensor:
        inside = net.b(x)
        if inside.shape[1] not in (12, 24):  # half is what the trace tries
            raise RuntimeError("my channels")
        return net.end(F.relu(inside)) + x

    with seeded():
        model = block(conv(24, 16))
        model.body_of.body = picky
    network = traced(model)
    network = replace(network, skeleton=replace_frozen(network.skeleton))
    with pytest.raises(ModelError, match=r"does not run: my channels"):
        with_removable_branches(network.model, network.skeleton)


def replace_frozen(skeleton: Skeleton) -> Skeleton:
    """All groups prunable that the trace of picky code froze."""
    thawed = tuple(
        replace(group, frozen=None) if group.name == "body_of.b" else group
        for group in skeleton.groups.every
    )
    return replace(skeleton, groups=replace(skeleton.groups, every=thawed))


# what stands in for a layer


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (5, 3), stride=(1, 2), padding=(0, 1), dilation=(1, 2)),
        nn.Conv2d(4, 6, 3, padding="same", dilation=2),
        nn.Conv2d(4, 6, 5, padding="valid", stride=3),
    ],
)
def test_nothing_has_the_shape_of_what_it_stands_for(layer: nn.Conv2d) -> None:
    images = torch.randn(2, 4, 17, 14)
    found = Nothing(6, layer)(images)
    assert found.shape == layer(images).shape
    assert not found.any()


# gates


@pytest.fixture
def wgates() -> WGates:
    network = removable("wgates:resnet20a")
    return WGates(network.model, network.skeleton, SETTINGS, multiple=8)


def close(wgates: WGates, *names: str) -> None:
    with torch.no_grad():
        for name in names:
            for layer in wgates.gates.each()[wgates.gates.names.index(name)].layers():
                layer.bias.fill_(-9)


def test_a_branch_goes_when_all_of_its_gates_close(wgates: WGates) -> None:
    full = dict(zip(wgates.gates.names, wgates.open_widths(), strict=True))
    close(wgates, "layer1.1.conv1", "conv1")
    found = dict(zip(wgates.gates.names, wgates.open_widths(), strict=True))
    assert found == {**full, "layer1.1.conv1": 0, "conv1": 8}  # the stream stops at its floor


def test_a_branch_stays_at_its_floor_while_a_gate_is_open_by_itself() -> None:
    groups = removable("wgates:resnet20a").skeleton.groups
    branch = replace(groups.branches[0], groups=("a", "b"))
    gates = {"a": torch.tensor([1.0, 1, 0]), "b": torch.tensor([1.0, 1, 0])}  # two held open
    closed = {"a": torch.tensor([-0.1, -0.2, -0.3]), "b": torch.tensor([-0.1, -0.2, -0.3])}
    assert not any(gate.any() for gate in let_go(gates, closed, (branch,)).values())
    one = {**closed, "b": torch.tensor([0.1, -0.2, -0.3])}
    found = let_go(gates, one, (branch,))
    assert all(torch.equal(found[name], gate) for name, gate in gates.items())


def test_the_price_reaches_the_gates_of_a_branch_that_is_gone(wgates: WGates) -> None:
    close(wgates, "layer1.1.conv1")
    for gate in wgates.gates.each():
        gate.surrogate = "ste"  # scores this far out are beyond the others' slopes
    scores = wgates.gates.scores(wgates.model)
    for score in scores.values():
        score.retain_grad()
    widths = widths_of(wgates.gates.of(scores))
    Count.macs(wgates.skeleton)(widths).sum().neg().backward()  # a price that pays for more
    grad = scores["layer1.1.conv1"].grad
    assert grad is not None
    assert (grad < 0).all()


def test_training_behind_gates_computes_without_the_branch(wgates: WGates) -> None:
    network = removable("wgates:resnet20a")
    close(wgates, "layer1.1.conv1")
    wgates.refresh()
    kept = dict(zip(wgates.gates.names, wgates.open_widths(), strict=True))
    groups = network.skeleton.groups
    plan = groups.first_channels(WidthVector(groups.names, tuple(kept.values())), "")
    with torch.no_grad():
        with wgates.in_place():
            found = network.model(network.images)
        with masked(network.model, groups, plan):
            expected = network.model(network.images)
        dense = network.model(network.images)
    assert torch.equal(found, expected)
    assert not torch.allclose(found, dense)


def slope_at_nothing(network: Network, branch: Branch) -> float:
    """d(loss)/d(share) of a branch that is added by a share of it, at none."""
    share = torch.zeros((), requires_grad=True)
    end = network.model.get_submodule(branch.name)
    handle = end.register_forward_hook(lambda module, inputs, output: share * output)
    network.model(network.images).square().sum().backward()
    handle.remove()
    assert share.grad is not None
    return float(share.grad)


@pytest.mark.parametrize("held", [False, True])
def test_the_scores_of_a_branch_that_is_gone_learn_what_it_would_add(held: bool) -> None:
    network = removable("wgates:resnet20a")
    (branch,) = (b for b in network.skeleton.groups.branches if b.groups == ("layer1.1.conv1",))
    settings = replace(SETTINGS, mode="projection" if held else "bound")
    wgates = WGates(network.model, network.skeleton, settings, multiple=8)
    full = dict(zip(wgates.gates.names, wgates.open_widths(), strict=True))
    wgates.gates.hold([*({**full, "layer1.1.conv1": 0}).values()])
    close(wgates, "layer1.1.conv1")
    for gate in wgates.gates.each():
        gate.surrogate = "ste"
    (layer,) = wgates.gates.each()[wgates.gates.names.index("layer1.1.conv1")].layers()
    wgates._look()
    with wgates.in_place():
        network.model(network.images).square().sum().backward()
    # a bias moves the scores of all channels
    assert layer.bias.grad is not None
    expected = slope_at_nothing(network, branch)
    assert float(layer.bias.grad) == pytest.approx(expected, rel=1e-3)
    assert abs(expected) > 1e-3


# selection


def scores_of(skeleton: Skeleton) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {group.name: rng.normal(0, 1, group.channels) for group in skeleton.groups.prunable}


@pytest.mark.parametrize("share", [0.01, 0.02, 0.3, 0.7])
def test_below_the_narrowest_widths_branches_go(share: float) -> None:
    skeleton = removable("torchvision:resnet18").skeleton
    count, groups = Count.macs(skeleton), skeleton.groups
    most = share * count.at(groups.full())
    selector = Selector(skeleton, priced(count), 16)
    plan = selector.choose(scores_of(skeleton), groups.full().kept, most)
    groups.check(plan)
    assert count.at(plan.widths()) <= max(most, count.at(groups.floor(16)))
    if most < count.at(narrowest(groups, 16, 0.0)):
        assert groups.removed(plan.widths())
    if share == 0.7:
        assert not groups.removed(plan.widths())


def test_a_branch_that_is_gone_comes_back_where_there_is_room() -> None:
    skeleton = removable("wgates:resnet20a").skeleton
    groups = skeleton.groups
    selector = Selector(skeleton, priced(Count.macs(skeleton)), 8)
    dense = Count.macs(skeleton).at(groups.full())
    kept = selector.choose(scores_of(skeleton), groups.floor(8).kept, dense).widths()
    assert kept == groups.full()
    bare = groups.floor(8)
    assert selector.choose(scores_of(skeleton), bare.kept, 0).widths() == bare


def test_uniform_widths_are_thinner_and_let_no_block_go() -> None:
    skeleton = removable("wgates:resnet20a").skeleton
    count, groups = Count.macs(skeleton), skeleton.groups
    selector = Selector(skeleton, priced(count), 8)
    thinnest = count.at(narrowest(groups, 8, 0.0))
    assert uniform_widths(selector, thinnest) == narrowest(groups, 8, 0.0)
    with pytest.raises(BudgetUnreachableError, match="uniform") as caught:
        uniform_widths(selector, thinnest - 1)
    assert caught.value.fix


def test_removal_is_not_offered_without_branches() -> None:
    network = named("wgates:resnet20a")
    selector = Selector(network.skeleton, priced(Count.macs(network.skeleton)), 8)
    plan = selector.choose(scores_of(network.skeleton), network.skeleton.groups.full().kept, 0)
    assert min(plan.widths().kept) == 8
