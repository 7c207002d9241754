"""The few statistics that every latency estimate uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# a run is only ever delayed, never sped up, by its neighbours: the low quantile is what they spare
LOW_QUANTILE = 0.25
_DRAWS_AT_ONCE = 1_000_000  # bounds the memory of a bootstrap to some 16 MB


def low_quantile(values_ms: NDArray[np.float64]) -> float:
    """The 25 % quantile of (n,) times."""
    return float(np.quantile(values_ms, LOW_QUANTILE))


def required_samples(percentile: float) -> int:
    """Fewest samples whose largest exceeds the percentile with 95 % confidence: 299 for p99."""
    if not 0.0 < percentile < 100.0:
        raise ValueError(f"a percentile lies between 0 and 100, not at {percentile}")
    if percentile <= 50.0:
        return 1
    return math.ceil(math.log(0.05) / math.log(percentile / 100.0))


def percentile_of(values_ms: NDArray[np.float64], percentile: float) -> float:
    """A percentile of (n,) times; ValueError when they are too few to tell."""
    needed = required_samples(percentile)
    if len(values_ms) < needed:
        raise ValueError(f"p{percentile:g} needs {needed} samples; there are {len(values_ms)}")
    return float(np.percentile(values_ms, percentile))


def bootstrap_ci95(
    values: ArrayLike,
    statistic: Callable[..., Any] = np.median,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[float, float]:
    """The 95 % `bootstrap_interval`."""
    return bootstrap_interval(values, statistic, seed=seed, resamples=resamples)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., Any] = np.median,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[float, float]:
    """The percentile-bootstrap interval of `statistic(values (n,))`, expanded for few values.

    `statistic` takes `axis`, as numpy's do. The same seed gives the same interval.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"a bootstrap needs a list of values, not shape {sample.shape}")
    estimates = np.concatenate(list(_resampled(sample, statistic, seed, resamples)))
    tail = _tail(len(sample), (1.0 - confidence) / 2)
    low, high = np.quantile(estimates, (tail, 1.0 - tail))
    return float(low), float(high)


def _tail(n: int, share: float) -> float:
    """The share of resamples to leave out at either end, below `share` the fewer values there are.

    Resamples of n values spread too little by sqrt((n - 1) / n), and about a normal law where
    Student's is due: Hesterberg's expanded percentiles make up for both.
    """
    if n < 2:
        return share
    normal = NormalDist()
    return normal.cdf(-math.sqrt(n / (n - 1)) * student_quantile(n - 1, 1 - share))


def student_quantile(freedom: int, share: float = 0.975) -> float:
    """A quantile of Student's t distribution: of 97.5 % within 1 % for 3 degrees or more."""
    z = NormalDist().inv_cdf(share)
    # Cornish and Fisher's expansion in 1 / freedom
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def _resampled(
    sample: NDArray[np.float64], statistic: Callable[..., Any], seed: int, resamples: int
) -> Iterator[NDArray[np.float64]]:
    """The statistic of each resample, in pieces that fit in memory."""
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, _DRAWS_AT_ONCE // len(sample))
    for start in range(0, resamples, rows_at_once):
        rows = min(rows_at_once, resamples - start)
        drawn = generator.integers(0, len(sample), size=(rows, len(sample)))
        yield np.asarray(statistic(sample[drawn], axis=1), dtype=np.float64)
