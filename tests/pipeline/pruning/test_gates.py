from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.widths import ChannelGroup, ChannelGroups, Plan, Slice
from pipeline.models.zoo import create_model
from pipeline.pruning.gates import FilterGates, GateForm, GroupGate, widths_of
from pipeline.pruning.groups import trace
from pipeline.pruning.masking import gated, masked
from pipeline.pruning.start import Start, first_scores
from pipeline.pruning.surrogates import BinaryGate, LiveClamp, Surrogate

from .networks import Net, Network, conv, named, seeded, small_network

EDGES = torch.tensor([-2.0, -0.75, -0.5, -0.25, -1e-6, 0.0, 1e-6, 0.25, 0.5, 0.75, 2.0])
GRID = torch.cat([EDGES, torch.linspace(-0.7, 0.7, 57)]).double()


def slope(surrogate: Surrogate) -> Tensor:
    scores = GRID.clone().requires_grad_(True)
    weight = torch.linspace(1, 2, len(GRID), dtype=torch.float64)
    (BinaryGate.apply(scores, surrogate) * weight).sum().backward()
    assert scores.grad is not None
    return scores.grad / weight


def gates_of(network: Network, **form: Any) -> FilterGates:
    floors = {group.name: 1 for group in network.skeleton.groups.prunable}
    with seeded():
        return FilterGates(network.skeleton.groups, network.model, floors, GateForm(**form))


def test_the_forward_is_binary_and_open_at_zero() -> None:
    gates = BinaryGate.apply(GRID, "poly")
    assert torch.equal(gates, torch.where(GRID >= 0, 1.0, 0.0).double())


def test_the_polynomial_slope_is_the_written_formula() -> None:
    written = torch.zeros_like(GRID)
    rising, falling = (GRID >= -0.5) & (GRID < 0), (GRID >= 0) & (GRID < 0.5)
    written[rising] = 2 + 4 * GRID[rising]
    written[falling] = 2 - 4 * GRID[falling]
    torch.testing.assert_close(slope("poly"), written, rtol=0, atol=1e-14)


def test_the_polynomial_slope_is_that_of_a_step_from_zero_to_one() -> None:
    fine = torch.linspace(-1, 1, 4001, dtype=torch.float64).requires_grad_(True)
    BinaryGate.apply(fine, "poly").sum().backward()
    assert fine.grad is not None
    assert float(torch.trapezoid(fine.grad, fine.detach())) == pytest.approx(1, abs=1e-6)


def test_the_other_surrogates() -> None:
    curve = GRID.clone().requires_grad_(True)
    ((torch.tanh(2 * curve) + 1) / 2).sum().backward()
    assert curve.grad is not None
    torch.testing.assert_close(slope("tanh"), curve.grad, rtol=1e-12, atol=1e-12)
    assert torch.equal(slope("ste"), torch.ones_like(GRID))


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_the_clamp_is_straight_inside_and_lets_scores_only_back_in(direction: float) -> None:
    limit = LiveClamp.LIMIT
    scores = torch.tensor([-9.0, -limit, -0.1, 0.0, 0.1, limit, 9.0], requires_grad=True)
    clamped = LiveClamp.apply(scores)
    assert clamped.tolist() == pytest.approx([-limit, -limit, -0.1, 0.0, 0.1, limit, limit])
    (direction * clamped).sum().backward()
    assert scores.grad is not None
    # descent moves against the gradient: +1 leads down, out of the window on the low side
    low, high = (0.0, 1.0) if direction > 0 else (1.0, 0.0)
    assert (direction * scores.grad).tolist() == [low, 1, 1, 1, 1, 1, high]


def lone_gate(channels: int, floor: int, **form: Any) -> GroupGate:
    model = Net(lambda s, x: s.a(x), a=conv(3, channels))
    rows = tuple((channel,) for channel in range(channels))
    group = ChannelGroup("a", channels, (Slice("a.weight", 0, rows, gate=True),))
    return GroupGate(group, model, floor, GateForm(**form))


def test_the_floor_holds_the_best_open_and_their_scores_still_learn() -> None:
    gate = lone_gate(6, 3)
    scores = torch.tensor([-0.3, -0.1, 0.2, -0.2, -0.35, -0.25], requires_grad=True)
    gates = gate(scores)
    assert gates.tolist() == [0, 1, 1, 1, 0, 0]
    gates.sum().backward()
    assert scores.grad is not None
    assert torch.allclose(scores.grad, 2 - 4 * scores.detach().abs())
    assert gate(torch.full((6,), 0.1)).tolist() == [1] * 6  # above the floor nothing is touched
    far = torch.tensor([-5.0, -3.0, -4.0, -2.0, -6.0, -7.0])  # the clamp makes these all equal
    assert gate(far).tolist() == [0, 1, 1, 1, 0, 0]


SCORES = (-0.3, -0.1, 0.2, -0.2, -0.35, -0.25)


@pytest.mark.parametrize("count", range(7))
def test_a_held_gate_opens_the_best_and_every_score_learns(count: int) -> None:
    gate = lone_gate(6, 3)
    gate.get_buffer("count").fill_(count)
    scores = torch.tensor(SCORES, requires_grad=True)
    gates = gate.best(scores)
    best = sorted(range(6), key=lambda i: -SCORES[i])[:count]
    assert gates.nonzero().flatten().tolist() == sorted(best)
    inward = 2 * gates.detach() - 1  # where descent leads each towards the edge
    (gates * inward).sum().backward()
    assert scores.grad is not None
    slope = scores.grad * inward
    assert (slope > 0).all()
    if 0 < count < 6:  # steepest between the last that stays and the first that goes
        ordered = sorted(SCORES, reverse=True)
        edge = (ordered[count - 1] + ordered[count]) / 2
        expected = 2 - 4 * (scores.detach() - edge).abs().clamp(max=LiveClamp.LIMIT)
        torch.testing.assert_close(slope, expected)


def test_a_held_gate_opens_no_more_than_its_count_where_scores_are_equal() -> None:
    gate = lone_gate(6, 1)
    gate.get_buffer("count").fill_(2)
    assert gate.best(torch.full((6,), 0.1)).tolist() == [1, 1, 0, 0, 0, 0]


def test_a_gate_is_filled_up_to_the_fast_width_and_counts_what_it_was() -> None:
    gate = lone_gate(12, 2, steps={"a": 4})
    scores = torch.linspace(0.3, -0.3, 12).requires_grad_(True)
    gates = gate(scores)
    assert int(gates.sum()) == 6
    filled = gate.filled(gates, scores)
    assert filled.tolist() == [1] * 8 + [0] * 4
    filled.sum().backward()
    assert scores.grad is not None
    assert torch.allclose(scores.grad, 2 - 4 * scores.detach().abs())
    whole = gate(scores.detach() + 0.5)
    assert gate.filled(whole, scores).tolist() == [1] * 12
    plain = lone_gate(12, 2)
    assert plain.filled(gates, scores) is gates


@pytest.mark.parametrize("start", get_args(Start))
def test_every_start_is_open_and_live(start: Start) -> None:
    network = small_network()
    for scores in gates_of(network, start=start).scores(network.model).values():
        assert scores.min() >= 0
        assert scores.max() < 0.5
        assert len(set(scores.tolist())) > 1


@pytest.mark.parametrize(
    "spec",
    [
        "wgates:resnet56",
        "torchvision:resnet50",
        "torchvision:mobilenet_v2",
        "torchvision:vgg16_bn",
    ],
)
def test_every_gate_of_a_fresh_model_is_open_and_live(spec: str) -> None:
    network = named(spec)
    gates = gates_of(network)
    for name, scores in gates.scores(network.model).items():
        assert scores.min() >= 0, name
        assert scores.max() < 0.5, name
    assert widths_of(gates(network.model)).int().tolist() == [
        list(network.skeleton.groups.full().kept)
    ]


def test_constant_filters_have_finite_scores_and_gradients() -> None:
    model = Net(lambda s, x: s.b(F.relu(s.a(x[:, :1]))), a=conv(1, 8, 1), b=conv(8, 8))
    model.b.weight.data[0] = 0.5
    rows = tuple((channel,) for channel in range(8))
    groups = ChannelGroups(
        tuple(ChannelGroup(name, 8, (Slice(f"{name}.weight", 0, rows),)) for name in ("a", "b"))
    )
    gates = FilterGates(groups, model, {"a": 1, "b": 1}, GateForm(detach_input=False))
    scores = gates.scores(model)
    assert len(set(scores["a"].tolist())) == 1  # one weight a filter: there is no shape to score
    assert scores["a"].min() > 0
    sum(score.square().sum() for score in scores.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in (model.a.weight, model.b.weight))


def test_a_depthwise_convolution_owns_no_gate() -> None:
    network = named("torchvision:mobilenet_v2")
    gates = gates_of(network)
    owners = [piece.tensor for gate in gates.gate for piece in gate.producers]
    modules = dict(network.model.named_modules())
    layers = {name.rpartition(".")[0]: modules[name.rpartition(".")[0]] for name in owners}
    assert len(owners) == len(layers)
    assert all(getattr(layer, "groups", 1) == 1 for layer in layers.values())
    ordinary = [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d) and module.groups == 1
    ]
    assert set(layers) == set(ordinary)
    depthwise = {n for n, m in modules.items() if getattr(m, "groups", 1) > 1}
    followed = {
        piece.tensor.rpartition(".")[0]
        for group in network.skeleton.groups.prunable
        for piece in group.slices
    }
    assert len(depthwise) == 17
    assert depthwise <= followed


def test_the_score_of_a_tied_group_is_the_mean_over_its_layers() -> None:
    network = named("wgates:resnet20")
    gates = gates_of(network)
    index = network.skeleton.groups.names.index("conv1")
    gate = gates.gate[index]
    assert [piece.tensor for piece in gate.producers] == [
        "conv1.weight",
        *(f"layer1.{i}.conv2.weight" for i in range(3)),
    ]
    by_hand = []
    for piece, layer in zip(gate.producers, gate.score, strict=True):
        filters = network.model.get_parameter(piece.tensor).detach().flatten(1).double()
        centred = filters - filters.mean(1, keepdim=True)
        rows = centred / centred.norm(dim=1, keepdim=True)
        by_hand.append(rows @ layer.weight.detach().double()[0] + layer.bias.detach().double())
    expected = torch.stack(by_hand).mean(0)
    found = gates.scores(network.model)["conv1"].detach().double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_score_does_not_see_the_size_of_a_filter() -> None:
    network = small_network()
    gates = gates_of(network)
    before = gates.scores(network.model)["a"]
    shrunk = copy.deepcopy(network.model)
    shrunk.a.weight.data *= 0.01
    torch.testing.assert_close(gates.scores(shrunk)["a"], before, rtol=1e-4, atol=1e-4)


def test_gates_apply_after_batch_norm() -> None:
    network = small_network()
    plan = Plan(network.skeleton.sha256, {"a": tuple(range(4)), "b": tuple(range(12))})
    seen: dict[str, Tensor] = {}
    model = copy.deepcopy(network.model)
    model.n.register_forward_pre_hook(lambda m, args: seen.update(normed=args[0]))
    model.b.register_forward_pre_hook(lambda m, args: seen.update(read=args[0]))
    with torch.no_grad(), masked(model, network.skeleton.groups, plan):
        model(network.images)
    assert seen["normed"][:, 4:].abs().sum() > 0
    assert seen["read"][:, 4:].abs().sum() == 0
    assert seen["read"][:, :4].abs().sum() > 0


def test_gating_a_norm_is_multiplying_its_output() -> None:
    with seeded(), torch.no_grad():
        norm, images = nn.BatchNorm2d(4), torch.randn(3, 4, 5, 5, dtype=torch.float64)
        norm.double().weight.uniform_(0.5, 2)
        norm.bias.normal_()
    rows = tuple((channel,) for channel in range(4))
    group = ChannelGroup("n", 4, (Slice("n.running_mean", 0, rows, gate=True),))
    model = nn.ModuleDict({"n": norm})
    found = []
    for folded in (True, False):
        x = images.clone().requires_grad_(True)
        gate = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
        if folded:
            with gated(model, ChannelGroups((group,)), lambda gate=gate: {"n": gate}):
                out = model["n"](x)
        else:
            out = norm(x) * gate.view(1, -1, 1, 1)
        norm.zero_grad()
        (out**3).sum().backward()
        found.append((out, x.grad, gate.grad, norm.weight.grad, norm.bias.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert isinstance(norm.weight, nn.Parameter)


def test_a_norm_has_its_parameters_back_when_its_forward_fails() -> None:
    norm = nn.BatchNorm2d(4)
    rows = tuple((channel,) for channel in range(4))
    groups = ChannelGroups(
        tuple(
            ChannelGroup(name, 4, (Slice("n.running_mean", 0, rows, gate=True),))
            for name in ("one", "two")
        )
    )
    model, weight = nn.ModuleDict({"n": norm}), norm.weight
    gates = {"one": torch.ones(4), "two": torch.zeros(4)}
    with gated(model, groups, lambda: gates):
        assert model["n"](torch.randn(2, 4, 3, 3)).abs().sum() == 0
        assert norm.weight is weight
        with pytest.raises(RuntimeError):
            model["n"](torch.randn(2, 5, 3, 3))
        assert norm.weight is weight


def test_leaving_the_block_takes_the_gates_off() -> None:
    network = small_network()
    before = network.model(network.images)
    plan = Plan(network.skeleton.sha256, {"a": (0,), "b": (0,)})
    with masked(network.model, network.skeleton.groups, plan):
        assert not torch.equal(network.model(network.images), before)
    assert torch.equal(network.model(network.images), before)


@pytest.mark.parametrize("detach", [False, True])
def test_the_gradient_reaches_weights_through_the_gates_unless_detached(detach: bool) -> None:
    network = small_network()
    gates = gates_of(network, detach_input=detach)
    widths_of(gates(network.model)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in gates.parameters())
    grads = [network.model.a.weight.grad, network.model.b.weight.grad]
    if detach:
        assert grads == [None, None]
    else:
        assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_the_task_loss_reaches_weights_and_gates() -> None:
    network = small_network()
    gates = gates_of(network)
    current = gates(network.model)
    with gated(network.model, network.skeleton.groups, lambda: current):
        F.cross_entropy(network.model(network.images), torch.tensor([0, 1])).backward()
    layers = [*gates.parameters(), network.model.a.weight, network.model.head.weight]
    assert all(layer.grad is not None and layer.grad.abs().sum() > 0 for layer in layers)


def test_a_fresh_model_gates_to_itself() -> None:
    model = create_model("wgates:resnet20", 10).eval()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    groups = trace(model, images).groups
    gates = FilterGates(groups, model, dict.fromkeys(groups.names, 1))
    current = gates(model)
    with torch.no_grad(), gated(model, groups, lambda: current):
        with_gates = model(images)
    with torch.no_grad():
        assert torch.equal(with_gates, model(images))


@pytest.mark.parametrize("start", ["signal", "norm"])
def test_fresh_scores_follow_the_order_that_was_asked_for(start: Start) -> None:
    network = small_network()
    scores = gates_of(network, start=start).scores(network.model)
    for group in network.skeleton.groups.prunable:
        wanted = first_scores(network.model, group, start)
        # the fit is exact up to the ridge: these layers have fewer filters than weights a filter
        assert torch.equal(scores[group.name].argsort(), wanted.argsort()), group.name
