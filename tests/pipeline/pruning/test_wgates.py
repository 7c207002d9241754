from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from calibration.counts import Count
from calibration.skeleton import Skeleton
from calibration.widths import legal_widths
from pipeline.pruning.select import Selector, priced
from pipeline.pruning.wgates import CostConstraint, GateSettings, WGates

from ...calibration.chain import chain
from .networks import named

SLOPES = torch.tensor([0.5, -0.25, 0.1])


def plane(kept: Tensor) -> Tensor:
    """A cost of which all is known."""
    return 2 + kept @ SLOPES


def constraint(aim: float) -> CostConstraint:
    return CostConstraint(plane, aim, dual_step=0.5)


def widths() -> Tensor:
    return torch.tensor([[8.0, 8.0, 20.0]], requires_grad=True)  # 2 + 4 - 2 + 2 = 6


@pytest.mark.parametrize("aim", [6.0, 7.5])
def test_inside_the_budget_there_is_neither_loss_nor_gradient(aim: float) -> None:
    term = constraint(aim)
    term.multiplier = 3.0
    loss = term.loss(widths())
    assert float(loss) == 0
    assert not loss.requires_grad
    assert term.predicted == 6.0


def test_above_the_budget_the_loss_is_the_excess_and_no_slope_rewards_growth() -> None:
    term, kept = constraint(4.0), widths()
    term.multiplier = 3.0
    loss = term.loss(kept)
    assert float(loss.detach()) == pytest.approx(3 * (6 / 4 - 1))
    loss.backward()
    assert kept.grad is not None
    assert kept.grad[0].tolist() == pytest.approx([3 * 0.5 / 4, 0.0, 3 * 0.1 / 4])


def test_the_multiplier_climbs_by_the_relative_excess() -> None:
    term = constraint(4.0)
    start = term.multiplier
    assert start >= 0
    for step in (1, 2):
        term.loss(widths())
        term.ascend()
        assert term.multiplier == start + step * 0.5 * (6 / 4 - 1)


def test_the_multiplier_falls_inside_the_budget_and_stops_at_zero() -> None:
    term = constraint(8.0)
    term.multiplier = 0.2
    term.loss(widths())
    term.ascend()
    assert term.multiplier == pytest.approx(0.2 + 0.5 * (6 / 8 - 1))
    term.ascend()
    assert term.multiplier == 0


@pytest.mark.parametrize("make", [Count.macs, Count.parameters])
def test_under_a_count_the_gradient_is_the_exact_slope(make: Callable[[Skeleton], Count]) -> None:
    skeleton = chain((16, 24, 32))
    count = make(skeleton)
    kept = torch.tensor([[12.0, 24.0, 9.0]], requires_grad=True)
    aim = float(count(kept).detach()) / 2
    term = CostConstraint(count, aim, dual_step=0.5)
    term.multiplier = 3.0
    loss = term.loss(kept)
    assert float(loss.detach()) == pytest.approx(3.0)
    loss.backward()
    ahead = kept.detach().double() + 0.5 * torch.eye(3)
    behind = kept.detach().double() - 0.5 * torch.eye(3)
    slope = count(ahead) - count(behind)  # exact: no width multiplies itself in a chain
    assert kept.grad is not None
    assert kept.grad[0].tolist() == pytest.approx((3.0 * slope / aim).tolist())


@pytest.mark.parametrize("make", [Count.macs, Count.parameters])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_plans_fill_a_count_and_never_exceed_it(
    wgates: WGates, make: Callable[[Skeleton], Count], share: float
) -> None:
    count = make(wgates.skeleton)
    most = int(share * count.at(wgates.skeleton.groups.full()))
    plan = wgates.propose(Selector(wgates.skeleton, priced(count), 8), most)
    assert 0.8 * most <= count.at(plan.widths()) <= most


@pytest.fixture
def wgates() -> WGates:
    network = named("wgates:resnet20")
    settings = GateSettings(
        gate_lr=0.01,
        weight_lr=0.02,
        weight_decay=1e-4,
        dual_lr=1.0,
        surrogate="poly",
        detach_input=False,
    )
    return WGates(network.model, network.skeleton, settings, multiple=8)


def test_a_fresh_model_is_all_open_and_says_so(wgates: WGates) -> None:
    assert wgates.open_widths() == wgates.skeleton.groups.full().kept
    health = wgates.health()
    assert health == {"live": 1.0, "open": 1.0, "flicker": 0.0}


def test_closed_gates_stop_at_the_legal_floor(wgates: WGates) -> None:
    with torch.no_grad():
        for gate in wgates.gates.gate:
            gate.score[0].bias.fill_(-9)
    floors = tuple(legal_widths(g.channels, 8)[0] for g in wgates.skeleton.groups.prunable)
    assert wgates.open_widths() == floors
    assert wgates.health()["flicker"] == 0.0
    with torch.no_grad():
        for gate in wgates.gates.gate:
            gate.score[0].bias.fill_(9)
    assert wgates.health()["flicker"] == 1.0


def test_gates_are_the_same_for_the_same_model_and_leave_the_global_seed(wgates: WGates) -> None:
    before = torch.random.get_rng_state()
    again = WGates(wgates.model, wgates.skeleton, wgates.settings, multiple=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, scores in again.scores().items():
        assert (scores == wgates.scores()[name]).all()
