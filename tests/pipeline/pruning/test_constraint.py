from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from calibration.counts import Count
from calibration.skeleton import Skeleton
from pipeline.pruning.constraint import FAIR, Aim, Bound, Penalty

from ...calibration.chain import chain

SLOPES = torch.tensor([0.5, -0.25, 0.1])


def plane(kept: Tensor) -> Tensor:
    """A cost of which all is known."""
    return 2 + kept @ SLOPES


def bound(aim: float, *, gain: float = 0.0) -> Bound:
    return Bound(plane, Aim(8.0, aim, 0.6), gain=gain, dual_step=0.5)


def widths() -> Tensor:
    return torch.tensor([[8.0, 8.0, 20.0]], requires_grad=True)  # 2 + 4 - 2 + 2 = 6


def test_on_the_aim_there_is_neither_loss_nor_change() -> None:
    term = bound(6.0, gain=4.0)
    assert float(term.loss(widths(), 1.0).detach()) == 0
    assert term.predicted == 6.0
    term.ascend(1.0)
    assert term.multiplier == 0


def test_the_loss_is_the_excess_times_its_price_and_no_slope_rewards_growth() -> None:
    term, kept = bound(4.0, gain=2.0), widths()
    term.multiplier = 3.0
    loss = term.loss(kept, 1.0)
    price = 3.0 + 2.0 * 0.5
    assert float(loss.detach()) == pytest.approx(price * (6 / 4 - 1))
    loss.backward()  # type: ignore[no-untyped-call]
    assert kept.grad is not None
    assert kept.grad[0].tolist() == pytest.approx([price * 0.5 / 4, 0.0, price * 0.1 / 4])


def test_below_the_aim_gates_are_paid_to_open() -> None:
    term, kept = bound(8.0, gain=2.0), widths()
    term.loss(kept, 1.0).backward()  # type: ignore[no-untyped-call]
    assert kept.grad is not None
    assert kept.grad[0, 0] == pytest.approx(2.0 * (6 / 8 - 1) * 0.5 / 8)


@pytest.mark.parametrize(
    ("aim", "counted"),
    [(6.06, 6 / 6.06 - 1), (5.94, 6 / 5.94 - 1), (4.0, FAIR), (8.0, -FAIR)],
)
def test_the_multiplier_climbs_by_the_relative_excess_as_far_as_it_counts(
    aim: float, counted: float
) -> None:
    term = bound(aim)
    for step in (1, 2):
        term.loss(widths(), 1.0)
        term.ascend(1.0)
        assert term.multiplier == pytest.approx(step * 0.5 * counted, rel=1e-4)


@pytest.mark.parametrize(
    ("share", "aim"), [(0.0, 8.0), (0.3, 6.0), (0.6, 4.0), (0.9, 4.0), (1.0, 4.0)]
)
def test_the_aim_falls_from_dense_and_then_stays(share: float, aim: float) -> None:
    term = bound(4.0)
    term.loss(widths(), share)
    assert term.excess == pytest.approx(6 / aim - 1)


def test_an_aim_without_a_ramp_is_there_from_the_start() -> None:
    assert Aim(8.0, 4.0).at(0.0) == 4.0


def test_the_penalty_is_the_papers() -> None:
    term, kept = Penalty(plane, 2.0, dense=8.0), widths()
    loss = term.loss(kept, 0.5)
    assert float(loss.detach()) == pytest.approx(2 * math.log(1 + 6 / 8))
    loss.backward()  # type: ignore[no-untyped-call]
    assert kept.grad is not None
    assert kept.grad[0].tolist() == pytest.approx([2 * 0.5 / 14, 0.0, 2 * 0.1 / 14])
    term.ascend(1.0)
    assert term.multiplier == 2.0


@pytest.mark.parametrize("make", [Count.macs, Count.parameters])
def test_under_a_count_the_gradient_is_the_exact_slope(make: Callable[[Skeleton], Count]) -> None:
    skeleton = chain((16, 24, 32))
    count = make(skeleton)
    kept = torch.tensor([[12.0, 24.0, 9.0]], requires_grad=True)
    aim = float(count(kept).detach()) / 2
    term = Bound(count, Aim(2 * aim, aim, 0.6), gain=0.0, dual_step=0.5)
    term.multiplier = 3.0
    loss = term.loss(kept, 1.0)
    assert float(loss.detach()) == pytest.approx(3.0)
    loss.backward()  # type: ignore[no-untyped-call]
    ahead = kept.detach().double() + 0.5 * torch.eye(3)
    behind = kept.detach().double() - 0.5 * torch.eye(3)
    slope = count(ahead) - count(behind)  # exact: no width multiplies itself in a chain
    assert kept.grad is not None
    assert kept.grad[0].tolist() == pytest.approx((3.0 * slope / aim).tolist())
