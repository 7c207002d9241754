"""How wrong a predictor is on records that it did not see, and the interval that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from calibration.database import LatencyRecord
from calibration.pace import calm
from calibration.widths import WidthVector

FOLDS = 5


@dataclass(frozen=True)
class HeldOutError:
    """How wrong a predictor was on records it did not see (cross-validation)."""

    records: int
    mean: float  # of |predicted / measured - 1|
    p90: float
    within_5: float  # share of records
    within_10: float
    spearman: float
    interval_90: float  # half width: 90 % of ratios measured / predicted lie in exp(+-this)
    interval_95: float

    @property
    def spread(self) -> float:
        """Nine of ten ratios measured / predicted lie between 1 / spread and spread."""
        return math.exp(self.interval_90)

    @classmethod
    def of(cls, predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> HeldOutError:
        """From (N,) held-out predictions and what was measured."""
        error = np.abs(predicted / measured - 1)
        size = np.abs(np.log(measured / predicted))
        return cls(
            records=len(measured),
            mean=float(error.mean()),
            p90=float(np.quantile(error, 0.9)),
            within_5=float((error <= 0.05).mean()),
            within_10=float((error <= 0.10).mean()),
            spearman=float(spearmanr(measured, predicted).statistic),
            interval_90=conformal(size, 0.90),
            interval_95=conformal(size, 0.95),
        )


def conformal(sizes: NDArray[np.float64], share: float) -> float:
    """The size that a new one of the same kind stays within, with probability `share` at least.

    With too few sizes for such a promise it is the largest of them.
    """
    rank = math.ceil(share * (len(sizes) + 1))
    return float(np.sort(sizes)[min(rank, len(sizes)) - 1])


def outer_folds(count: int, seed: int) -> NDArray[np.int64]:
    """(N,) fold of each record: every one is held out once."""
    return np.random.default_rng(seed).permutation(count) % FOLDS


def judges_of(
    records: Sequence[LatencyRecord], full: WidthVector, *, fewest: int
) -> NDArray[np.bool_]:
    """(N,) records that tell how wrong a predictor is on the networks that a budget leads to.

    Not those with at most one narrow group, as cliffs are searched with: nearly dense networks are
    easy, and of a calibration that stops early they are half. And not those that others disturbed,
    unless less than `fewest` are left.
    """
    narrow = np.array([record.widths.kept for record in records]) != np.array(full.kept)
    joint: NDArray[np.bool_] = narrow.sum(1) > 1
    for judges in (joint & calm(records), joint):
        if judges.sum() >= fewest:
            return judges
    return np.ones(len(records), dtype=bool)
