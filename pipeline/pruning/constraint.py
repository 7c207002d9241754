"""The cost's part of the loss while gates learn: a bound that is hit, or the paper's penalty."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.pruning.select import Cost, Selector

FAIR = 0.03  # excess that the multiplier learns from


@dataclass(frozen=True)
class Goal:
    """What a method learns under."""

    smooth: Callable[[], Cost]  # whose slope gates can follow, made when asked for
    selector: Selector  # what plans cost, and which ones there are
    aim: float  # of the cost


@dataclass(frozen=True)
class Aim:
    """What the cost may be: it may fall from the dense network's over the first steps.

    A bound that is violated by little at all times lets the task choose which gates close; one
    violated by much closes whole groups at once.
    """

    dense: float
    last: float
    ramp: float = 0.0  # share of the gated steps that it falls over

    def at(self, share: float) -> float:
        """After `share` of the gated steps."""
        fallen = min(1.0, share / self.ramp) if self.ramp else 1.0
        return self.dense + fallen * (self.last - self.dense)


class CostTerm(Protocol):
    """What training under a cost adds to the loss, and the one number it has to remember."""

    multiplier: float
    predicted: float  # the cost of the widths seen last

    def loss(self, widths: Tensor, share: float) -> Tensor:
        """The term for (1, G) open gates after `share` of the gated steps."""

    def ascend(self, share: float) -> None:
        """After each step, the one at `share` of the gated steps."""


class Bound:
    """price * (cost / aim - 1), the price by dual ascent with a proportional part.

    price = multiplier + gain * excess, d(multiplier)/dstep = dual_step * excess, which counts at
    most `FAIR` there: what the first, noisy steps are off by says nothing of the price in the end.
    Dual ascent alone is an oscillator: gates integrate the price, the multiplier integrates what
    they are off by, and in a training of any length it swings about once. The proportional part
    damps it. Inside the budget the excess is negative, and in the end the price as well: gates
    that noise closed open again, so that no capacity is given away.
    """

    def __init__(self, cost: Cost, aim: Aim, *, gain: float, dual_step: float) -> None:
        self.cost, self.aim, self.gain, self.dual_step = cost, aim, gain, dual_step
        self.multiplier = 0.0
        self.predicted, self.excess = float("nan"), 0.0

    def loss(self, widths: Tensor, share: float) -> Tensor:
        aim = self.aim.at(share)
        self.predicted, slope = with_slope(self.cost, widths)
        self.excess = self.predicted / aim - 1
        price = self.multiplier + self.gain * self.excess
        # a negative slope is a wiggle of the predictor: it would reward growth
        return price * (sloped(widths, slope.clamp_min(0)) / aim + self.excess)

    def ascend(self, share: float) -> None:
        self.multiplier += self.dual_step * min(max(self.excess, -FAIR), FAIR)


class Penalty:
    """alpha * log(1 + cost / dense), as in the paper: a trade against the task, not a bound."""

    def __init__(self, cost: Cost, alpha: float, *, dense: float) -> None:
        self.cost, self.dense = cost, dense
        self.multiplier = alpha
        self.predicted = float("nan")

    def loss(self, widths: Tensor, share: float) -> Tensor:
        self.predicted, slope = with_slope(self.cost, widths)
        linear = sloped(widths, slope.clamp_min(0))
        value = math.log1p(self.predicted / self.dense)
        return self.multiplier * (value + linear / (self.dense + self.predicted))

    def ascend(self, share: float) -> None:
        """The weight of the cost is given, not learned."""


def sloped(widths: Tensor, slope: Tensor) -> Tensor:
    """Zero, with a slope (1, G) in the widths (1, G)."""
    return ((widths - widths.detach()) * slope).sum()


def with_slope(cost: Cost, widths: Tensor) -> tuple[float, Tensor]:
    """The cost of (1, G) widths and its slope (1, G), both without a graph behind them."""
    kept = widths.detach().clone().requires_grad_(True)
    found = cost(kept).sum()
    (slope,) = torch.autograd.grad(found, kept)
    return float(found.detach()), slope
