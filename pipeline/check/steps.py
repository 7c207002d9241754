"""Steps in a series: where its level changed for good.

Binary segmentation: the split that separates best is kept if hardly any shuffling of the series
separates as well, and both halves are searched in turn. Ranks are compared, so that one odd value
makes no step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEWEST = 5  # values on either side of a step
SHUFFLES = 999
P_VALUE = 0.01
SEED = 0


@dataclass(frozen=True)
class Step:
    """A change of level."""

    index: int  # of the first value at the new level
    change: float  # of the medians of the pieces on both sides; in units of the series


def steps(series: Sequence[float]) -> tuple[Step, ...]:
    """All steps of a series, in order."""
    values = np.asarray(series, dtype=np.float64)
    found = sorted(_splits(values, 0, np.random.default_rng(SEED)))
    edges = [0, *found, len(values)]
    return tuple(
        Step(at, float(np.median(values[at:after]) - np.median(values[before:at])))
        for before, at, after in zip(edges, edges[1:], edges[2:], strict=False)
    )


def _splits(values: NDArray[np.float64], start: int, generator: np.random.Generator) -> list[int]:
    if len(values) < 2 * FEWEST:
        return []
    ranks = _ranks(values)
    best = _separations(ranks[None])[0]
    shuffled = generator.permuted(np.tile(ranks, (SHUFFLES, 1)), axis=1)
    as_good = int((_separations(shuffled).max(axis=1) >= best.max()).sum())
    if (as_good + 1) / (SHUFFLES + 1) > P_VALUE:
        return []
    at = FEWEST + int(best.argmax())
    left = _splits(values[:at], start, generator)
    return [*left, start + at, *_splits(values[at:], start + at, generator)]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean ranks (n,) around zero: equal values share one."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean_ranks = (ends - (counts - 1) / 2)[place]
    centred: NDArray[np.float64] = mean_ranks - mean_ranks.mean()
    return centred


def _separations(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each split separates the ranks (rows, n), in standard deviations, (rows, splits)."""
    n = ranks.shape[1]
    left = np.arange(FEWEST, n - FEWEST + 1)
    sums = np.cumsum(ranks, axis=1)[:, left - 1]
    deviations = np.sqrt(left * (n - left) / n)
    separations: NDArray[np.float64] = np.abs(sums) / deviations
    return separations
