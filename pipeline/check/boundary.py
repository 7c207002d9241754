"""An exact sequential sign test: when to stop, and an interval that holds at every look.

Each fresh process gives one value, and one looks after each. Whatever the law of the values, each
lies above its median with probability at most 1/2, so the number above it walks like a coin's
heads, and the chance that such a walk ever reaches a boundary is a finite sum (the recursion of
Armitage, McPherson and Rowe, J. R. Stat. Soc. A 132, 1969). The boundary spends the error rate over
the looks by the function of Lan and DeMets (Biometrika 70, 1983) that resembles Pocock's. Turned
round, the test is a confidence sequence for the median, as in Howard and Ramdas (Bernoulli 28,
2022), narrower because the number of looks is bounded. Outliers, heavy tails and skew cannot break
it; values that depend on each other can.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

ERROR_RATE = 0.005  # of each side: of passing what is too slow, and of blaming what is not


@dataclass(frozen=True)
class Boundary:
    """How many of n values must lie on one side of a limit for their median to lie there, too."""

    needed: tuple[int | None, ...]  # after 1, 2, ... values; None: no number of them is enough
    error_rate: float  # of ever concluding wrongly, on one side

    @classmethod
    def of(cls, most: int, error_rate: float = ERROR_RATE) -> Self:
        """The boundary for up to `most` values, looked at after each."""
        needed, _ = _spent(most, error_rate)
        return cls(needed, error_rate)

    @property
    def fewest(self) -> int:
        """Values before the first of which nothing can be concluded."""
        return next(n for n, count in enumerate(self.needed, 1) if count is not None)

    @property
    def confidence(self) -> float:
        """With which all intervals of a sequence cover the median together."""
        return 1.0 - 2.0 * self.error_rate

    def interval(self, values: ArrayLike) -> tuple[float, float] | None:
        """The median's interval after these (n,) values; None while they are too few."""
        ordered = np.sort(np.asarray(values, dtype=np.float64))
        count = self.needed[len(ordered) - 1] if len(ordered) else None
        if count is None:
            return None
        return float(ordered[len(ordered) - count]), float(ordered[count - 1])


def spent_error(most: int, error_rate: float = ERROR_RATE) -> float:
    """The exact chance that a fair coin's walk ever reaches the boundary on one side."""
    return _spent(most, error_rate)[1]


@functools.cache
def _spent(most: int, error_rate: float) -> tuple[tuple[int | None, ...], float]:
    if most < 1 or not 0 < error_rate < 0.5:
        raise ValueError(f"no boundary for {most} values at an error rate of {error_rate}")
    walk: NDArray[np.float64] = np.ones(1)  # chance of 0, 1, ... heads without having stopped
    spent = 0.0
    needed: list[int | None] = []
    for n in range(1, most + 1):
        walk = (np.append(walk, 0.0) + np.append(0.0, walk)) / 2
        reached = np.cumsum(walk[::-1])[::-1]
        allowed = error_rate * math.log1p((math.e - 1) * n / most) - spent
        # a walk cannot have come to n heads where it had to stop before: such a count says nothing
        possible = np.flatnonzero((reached <= allowed) & (reached > 0))
        if not len(possible):
            last = needed[-1] if needed else None
            needed.append(None if last is None else last + 1)
            continue
        count = int(possible[0])
        spent += float(reached[count])
        walk[count:] = 0.0
        needed.append(count)
    return tuple(needed), spent
