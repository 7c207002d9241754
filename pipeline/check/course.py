"""How the answer of a gate came about: what every process added, and what each look saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from pipeline.check.boundary import Boundary


@dataclass(frozen=True)
class Course:
    """One entry a process, in the order in which they ran; shares, or ms for the budget."""

    limit: float
    values: tuple[float, ...]  # of each process alone
    medians: tuple[float, ...]  # of the processes so far
    intervals: tuple[tuple[float, float] | None, ...]  # likewise; None while they are too few

    @classmethod
    def of(cls, values: ArrayLike, boundary: Boundary, limit: float) -> Self:
        """The looks at (processes,) values."""
        found = np.asarray(values, dtype=np.float64)
        so_far = [found[: n + 1] for n in range(len(found))]
        return cls(
            limit,
            tuple(float(value) for value in found),
            tuple(float(np.median(part)) for part in so_far),
            tuple(boundary.interval(part) for part in so_far),
        )
