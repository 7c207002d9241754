"""What the closed loop knows of a plan that was measured, and where it looks for the next one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from calibration.widths import Plan

NARROW = 0.002  # aims that lie so near to each other are one
# of the budget: a slower plan may miss it when verify measures it, after all training. Measured
# again on a calm machine, ten came to -0.9 to +0.2 % of what the closed loop had seen (the first
# plans of ResNet-20 in benchmarks/results/budgets.json)
SAFE = 0.995


@dataclass(frozen=True)
class Round:
    """A plan that was built and measured: what was predicted and what came out."""

    round: int
    attempt: int
    plan: Plan
    predicted_ms: float
    ratio: float
    ratio_ci95: tuple[float, float]
    anchor_ms: float
    limit_ms: float | None  # None: the budget is a count, which the plan was chosen to meet

    @property
    def measured_ms(self) -> float:
        return self.ratio * self.anchor_ms

    @property
    def met(self) -> bool:
        """Whether the whole interval lies within the limit."""
        return self.measured_ms <= self.most_ms / SAFE

    @property
    def safe(self) -> bool:
        """Met with room for what the final measurement may differ by."""
        return self.measured_ms <= self.most_ms

    @property
    def slow(self) -> bool:
        """Not safe, however well its latency were known."""
        return self.measured_ms > self._known_ms

    @property
    def most_ms(self) -> float:
        """What a plan whose latency is known as well as this one's may measure and be safe."""
        return self._known_ms / (1 + self._above)

    @property
    def _known_ms(self) -> float:
        """What a plan may measure and be safe whose latency is known exactly."""
        return math.inf if self.limit_ms is None else SAFE * self.limit_ms

    @property
    def _above(self) -> float:
        """How far the interval reaches above the ratio, as a share of it."""
        return self.ratio_ci95[1] / self.ratio - 1

    def fits(self, least_ms: float) -> bool:
        """Safe, and without giving accuracy away by being much faster than asked.

        By how much can only be told as well as the latency is known; another plan costs a minute.
        """
        nearest_ms = self.most_ms * (1 - self._above / 2)
        surely_faster = (1 + self._above) * self.measured_ms < least_ms
        return self.safe and not surely_faster and self.measured_ms >= min(least_ms, nearest_ms)

    def to_json(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "attempt": self.attempt,
            "predicted_ms": self.predicted_ms,
            "measured_ms": self.measured_ms,
            "ratio": self.ratio,
            "ratio_ci95": list(self.ratio_ci95),
            "met": self.met,
            "kept": list(self.plan.widths().kept),
        }


@dataclass(frozen=True)
class Aim:
    """What the next plan may be predicted to take, and what proved too little and too much."""

    ms: float
    wasteful: float = 0.0
    unsafe: float = math.inf

    def after(self, found: Round, corrected: float) -> Aim:
        """`corrected` by what the LPNet got wrong about `found`, unless that was tried.

        Plans a few percent apart may be misjudged by a few percent each, in opposite ways. One that
        is not safe only because its latency is hardly known says nothing about its aim.
        """
        wasteful, unsafe = self._bounds(wasteful=found.safe, unsafe=found.slow)
        if 0 < wasteful < unsafe < math.inf and not wasteful < corrected < unsafe:
            corrected = (wasteful + unsafe) / 2
        return Aim(corrected, wasteful, unsafe)

    def beside(self, known: Round) -> Aim | None:
        """Where to look on when this aim led to a plan that is known; None if there is no room."""
        wasteful, unsafe = self._bounds(wasteful=known.safe, unsafe=not known.safe)
        if not 0 < wasteful * (1 + NARROW) < unsafe < math.inf:
            return None
        return Aim((wasteful + unsafe) / 2, wasteful, unsafe)

    def _bounds(self, *, wasteful: bool, unsafe: bool) -> tuple[float, float]:
        """What proved too little and too much, now that this aim did one of them, or neither."""
        return (
            max(self.wasteful, self.ms) if wasteful else self.wasteful,
            min(self.unsafe, self.ms) if unsafe else self.unsafe,
        )
