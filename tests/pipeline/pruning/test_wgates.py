from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from calibration.counts import Count
from calibration.lpnet import one_thread
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector, legal_widths
from pipeline.evaluation import Top1
from pipeline.pruning.constraint import Aim, Goal
from pipeline.pruning.projection import PROJECTIONS
from pipeline.pruning.select import Selector, priced
from pipeline.pruning.wgates import BudgetMode, GateSettings, WGates
from pipeline.training import Loss, Trainer

from .networks import named

SETTINGS = GateSettings(gate_lr=1.0, weight_lr=0.02, weight_decay=1e-4, dual_lr=0.8, mode="bound")
HELD = replace(SETTINGS, mode="projection")


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
    return WGates(network.model, network.skeleton, SETTINGS, multiple=8)


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


def test_a_least_width_raises_the_floor(wgates: WGates) -> None:
    settings = replace(SETTINGS, min_width=0.7)
    wide = WGates(wgates.model, wgates.skeleton, settings, multiple=8)
    with torch.no_grad():
        for gate in wide.gates.each():
            for layer in gate.layers():
                layer.bias.fill_(-9)
    widths = [min(-(-g.channels * 7 // 80) * 8, g.channels) for g in wide.skeleton.groups.prunable]
    assert list(wide.open_widths()) == widths
    assert widths != list(wgates.skeleton.groups.full().kept)


def goal(wgates: WGates, count: Count, aim: float) -> Goal:
    return Goal(lambda: count, Selector(wgates.skeleton, priced(count), 8), aim)


class Course:
    """A trainer of `steps` steps on 32 made-up images whose class can be seen."""

    def __init__(self, steps: int, batch: int = 8) -> None:
        self.recipe, self.steps_per_epoch = SimpleNamespace(epochs=1), steps
        self.batch, self.state = batch, dict[str, float]()
        self.fabric = SimpleNamespace(device=torch.device("cpu"), world_size=1)
        rng = torch.Generator().manual_seed(0)
        self.labels = torch.arange(32) % 10
        self.images = 0.3 * torch.randn(32, 3, 16, 16, generator=rng)
        self.images += torch.randn(10, 3, 16, 16, generator=rng)[self.labels]
        self.rng = rng

    def train(
        self,
        trained: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        *,
        evaluate: Callable[[], Top1],
        on_step: Callable[[], None],
    ) -> None:
        trained.train()
        self.optimizer = optimizer
        for _ in range(self.steps_per_epoch):
            rows = torch.randint(32, (self.batch,), generator=self.rng)
            optimizer.zero_grad()
            loss(self.images[rows], self.labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            on_step()


@one_thread()
@pytest.mark.parametrize("steps", [60, 200])
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_the_widths_that_gates_learn_hit_the_aim(wgates: WGates, steps: int, share: float) -> None:
    model = copy.deepcopy(wgates.model)
    fresh = WGates(model, wgates.skeleton, SETTINGS, multiple=8)
    macs = Count.macs(fresh.skeleton)
    aim = share * macs.at(fresh.skeleton.groups.full())
    fresh.solve(cast("Trainer", Course(steps)), goal(fresh, macs, aim))
    found = macs.at(WidthVector(fresh.skeleton.groups.names, fresh.open_widths()))
    assert found == pytest.approx(aim, rel=0.05)
    assert all(p.is_leaf for p in model.parameters())


class Over(Course):
    """One that goes on after an epoch's last step: only its evaluation is left."""

    data = None

    def train(self, *_: Any, evaluate: Callable[[], Top1], **more: Any) -> None:
        evaluate()


@pytest.mark.parametrize("mode", ["bound", "penalty"])
def test_an_epoch_that_goes_on_after_its_last_step_states_its_cost(
    wgates: WGates, mode: BudgetMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.pruning.wgates.top1", lambda *_: Top1(0.5, 4))
    settings = replace(SETTINGS, mode=mode)
    fresh = WGates(copy.deepcopy(wgates.model), wgates.skeleton, settings, multiple=8)
    macs, course = Count.macs(fresh.skeleton), Over(10)
    fresh.solve(cast("Trainer", course), goal(fresh, macs, macs.at(fresh.skeleton.groups.full())))
    widths = WidthVector(fresh.skeleton.groups.names, fresh.open_widths())
    assert course.state["predicted"] == pytest.approx(macs.at(widths), rel=1e-5)


def test_no_epochs_are_none(wgates: WGates) -> None:
    assert [wgates.solving_epochs(epochs) for epochs in (0, 1, 3)] == [0, 1, 2]


@one_thread()
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_gates_are_held_on_plans_that_fit_an_aim_that_falls(
    wgates: WGates, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = WGates(copy.deepcopy(wgates.model), wgates.skeleton, HELD, multiple=8)
    macs, groups = Count.macs(fresh.skeleton), fresh.skeleton.groups
    dense, seen = macs.at(groups.full()), []
    course = Course(60)
    watched = replace(goal(fresh, macs, share * dense), smooth=lambda: pytest.fail("not needed"))
    hold = fresh.gates.hold

    def noted(kept: Sequence[int]) -> None:
        seen.append(tuple(kept))
        hold(kept)

    monkeypatch.setattr(fresh.gates, "hold", noted)
    fresh.solve(cast("Trainer", course), watched)
    costs = [macs.at(WidthVector(groups.names, kept)) / dense for kept in seen]
    assert len(costs) == PROJECTIONS
    for number, cost in enumerate(costs, 1):
        assert cost <= Aim(1.0, share, 0.6).at((number - 0.5) / PROJECTIONS)
    assert share * 0.8 <= costs[-1] <= share
    assert fresh.open_widths() == seen[-1]
    assert fresh.health()["open"] == pytest.approx(sum(seen[-1]) / sum(groups.full().kept))
    masks = fresh._current
    assert [int(mask.sum()) for mask in masks.values()] == list(seen[-1])


@one_thread()
@pytest.mark.parametrize(("settings", "expected"), [(HELD, "falls"), (SETTINGS, "steady")])
def test_gates_on_plans_settle_and_those_under_a_price_follow_it_to_the_end(
    wgates: WGates, settings: GateSettings, expected: str
) -> None:
    fresh = WGates(copy.deepcopy(wgates.model), wgates.skeleton, settings, multiple=8)
    macs, course = Count.macs(fresh.skeleton), Course(1)
    aim = 0.5 * macs.at(fresh.skeleton.groups.full())
    fresh.solve(cast("Trainer", course), goal(fresh, macs, aim))
    of_gates = {parameter for gate in fresh.gates.each() for parameter in gate.parameters()}
    found = [
        group["course"]
        for group in course.optimizer.param_groups
        if of_gates & set(group["params"])
    ]
    assert found == [expected] * (1 + len(fresh.gates.each()))
    assert {group["course"] for group in course.optimizer.param_groups} == {expected, "holds"}


def test_a_held_model_is_resumed_as_it_was(wgates: WGates) -> None:
    kept = [8, *wgates.skeleton.groups.full().kept[1:]]
    held = WGates(wgates.model, wgates.skeleton, HELD, multiple=8)
    held.gates.hold(kept)
    again = WGates(copy.deepcopy(wgates.model), wgates.skeleton, HELD, multiple=8)
    again.trained.load_state_dict(held.trained.state_dict())
    assert list(again.open_widths()) == kept


@one_thread()
def test_a_penalty_trades_and_a_larger_one_prunes_more(wgates: WGates) -> None:
    macs, costs = Count.macs(wgates.skeleton), []
    for alpha in (0.0, 30.0):
        settings = replace(SETTINGS, mode="penalty", alpha=alpha)
        fresh = WGates(copy.deepcopy(wgates.model), wgates.skeleton, settings, multiple=8)
        fresh.solve(cast("Trainer", Course(40)), goal(fresh, macs, aim=1.0))
        costs.append(macs.at(WidthVector(fresh.skeleton.groups.names, fresh.open_widths())))
    assert costs[1] < 0.8 * costs[0]
