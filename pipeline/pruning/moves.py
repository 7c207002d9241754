"""Steps from one plan's widths to the next: which there are, and what widths are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# legal widths that a step may go: where the runtime works in blocks of two or four of them, the
# next one alone often saves nothing, and would hide what the block is worth
REACH = 4

Step = dict[int, int]  # index of a group -> its new width


@dataclass(frozen=True)
class Moves:
    """The steps that the widths of one network can take."""

    allowed: Sequence[tuple[int, ...]]  # widths of each group, rising
    branches: Sequence[Sequence[int]]  # groups of each branch that may go

    def of(self, kept: Sequence[int], direction: int) -> list[Step]:
        """Each a short step of one group, the shortest first, or a whole branch.

        A branch goes from any widths, and comes back at its floor or whole: what its layers cost
        at every width is saved at none but zero, so that step by step it would seem to pay least.
        """
        steps = [
            {index: width}
            for index, (widths, now) in enumerate(zip(self.allowed, kept, strict=True))
            for width in _next(widths, now, direction)
            if now
        ]
        for branch in self.branches:
            stands = any(kept[index] for index in branch)
            if direction < 0 and stands:
                steps.append(dict.fromkeys(branch, 0))
            elif direction > 0 and not stands:
                steps += [{i: self.allowed[i][end] for i in branch} for end in (0, -1)]
        return steps


def _next(legal: tuple[int, ...], width: int, direction: int) -> list[int]:
    if direction > 0:
        return [w for w in legal if w > width][:REACH]
    return [w for w in reversed(legal) if w < width][:REACH]


def after(kept: Sequence[int], step: Mapping[int, int]) -> list[int]:
    """The widths when the step is taken."""
    return [step.get(index, width) for index, width in enumerate(kept)]


def total(kept: Sequence[int], worth: Sequence[NDArray[np.float64]]) -> float:
    """What the widths are worth; `worth[g][k]` is that of k channels of group g."""
    return float(sum(of[width] for of, width in zip(worth, kept, strict=True)))


def totals(rows: NDArray[np.int64], worth: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(N,) of the widths in rows (N, G)."""
    found: NDArray[np.float64] = np.sum([of[rows[:, i]] for i, of in enumerate(worth)], axis=0)
    return found
