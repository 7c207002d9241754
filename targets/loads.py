"""A ratio from several loads of both engines.

Where an engine's memory comes to lie is drawn with each load and is worth up to 1 % of its latency
on ResNet-18, up to 7 % on a narrow VGG-16 (benchmarks/disturbance.py). An anchor that stayed loaded
would have the same luck in all measurements of a calibration, and no number of them would show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol

import numpy as np

from targets.samples import Samples
from targets.timing import Comparison, imprecision, relative_half

LOADS, MOST_LOADS = 2, 6
APART = 2.0  # times the wished precision: from there on it is luck that another load tells of


class HasRatio(Protocol):
    """A measured ratio and its 95 % interval."""

    @property
    def ratio(self) -> float: ...
    @property
    def ratio_ci95(self) -> tuple[float, float]: ...


def mean_ratio(parts: Sequence[HasRatio]) -> tuple[float, tuple[float, float]]:
    """The geometric mean of independent measurements, and its 95 % interval.

    That comes from their own intervals and from how far they lie apart.
    """
    logs, count = [math.log(part.ratio) for part in parts], len(parts)
    halves = [math.log(part.ratio_ci95[1] / part.ratio_ci95[0]) / 2 for part in parts]
    within = math.sqrt(sum(half**2 for half in halves)) / count
    apart = 1.96 * float(np.std(logs, ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    ratio, spread = math.exp(float(np.mean(logs))), math.exp(math.hypot(within, apart))
    return ratio, (ratio / spread, ratio * spread)


@dataclass(frozen=True)
class Loads:
    """How long a candidate takes as a multiple of an anchor, over several loads of both."""

    parts: tuple[Comparison, ...]  # one a load
    precision: float  # wished half width of the interval over the ratio

    @property
    def ratio(self) -> float:
        """The geometric mean of the loads' ratios."""
        return mean_ratio(self.parts)[0]

    @property
    def ratio_ci95(self) -> tuple[float, float]:
        """From the loads' own intervals and from how far the loads lie apart."""
        return mean_ratio(self.parts)[1]

    @property
    def relative_error(self) -> float:
        """Half the interval's width over the ratio."""
        return relative_half(self.ratio, self.ratio_ci95)

    @property
    def lie_apart(self) -> bool:
        """Whether the ratio is so badly known that more loads are worth their time."""
        return self.relative_error > APART * self.precision

    @property
    def candidate(self) -> Samples:
        """All timed calls, in order."""
        return Samples.concatenate(part.candidate for part in self.parts)

    @property
    def anchor(self) -> Samples:
        return Samples.concatenate(part.anchor for part in self.parts)

    @property
    def calls_per_round(self) -> int:
        """Of the candidate, after its first load."""
        return self.parts[0].calls_per_round

    def doubts(self) -> tuple[str, ...]:
        """Reasons to distrust the ratio, in words; empty if none."""
        disturbed = dict.fromkeys(doubt for part in self.parts for doubt in part.disturbances())
        return (*disturbed, *imprecision(self.relative_error, self.precision))


def over_loads(timed: Callable[[], Comparison], *, precision: float, limit_s: float) -> Loads:
    """What `timed`, which loads both engines anew, tells each time it is called.

    Twice, and up to four times more while the loads lie apart and less than `limit_s` have passed.
    """
    began = perf_counter()
    found = Loads(tuple(timed() for _ in range(LOADS)), precision)
    while found.lie_apart and len(found.parts) < MOST_LOADS and perf_counter() - began < limit_s:
        found = replace(found, parts=(*found.parts, timed()))
    return found
