"""How the held-out error falls with samples, chosen actively or at random, after the fact.

Both choose from the networks that were measured, begin with the same few, and are tested on the
same others; so the curve costs fits, but not one measurement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from calibration.active import Fit, corners, ensemble, spread_out
from calibration.database import LatencyRecord
from calibration.pace import calm

TEST_EVERY = 4  # in order of latency, so that the test covers the range
FIRST = 32  # networks at which both begin: without a quarter, still enough for an LPNet
FEWEST = 80  # measured networks for a curve that tells anything
POINTS = 5
LIMIT_S = 10.0


@dataclass(frozen=True)
class CurvePoint:
    """Mean held-out error of predictors fitted on `samples` networks."""

    samples: int
    active: float
    random: float


def error_curve(
    records: Sequence[LatencyRecord], fit: Fit, *, seed: int, limit_s: float = LIMIT_S
) -> tuple[CurvePoint, ...]:
    """Both errors at a few sample sizes, each the mean over up to four splits into pool and test.

    Fewer splits, and at last fewer sizes, when the time is up; none for few records.
    """
    if len(records) < FEWEST:
        return ()
    deadline = perf_counter() + limit_s
    runs: list[tuple[CurvePoint, ...]] = []
    for split in range(TEST_EVERY):
        run = tuple(_one_split(*_split(records, split), fit, seed + split, deadline))
        if runs and len(run) < len(runs[0]):
            break
        runs.append(run)
        if perf_counter() > deadline:
            break
    return tuple(
        CurvePoint(
            points[0].samples,
            float(np.mean([point.active for point in points])),
            float(np.mean([point.random for point in points])),
        )
        for points in zip(*runs, strict=True)
    )


def _one_split(
    pool: Sequence[LatencyRecord],
    test: Sequence[LatencyRecord],
    fit: Fit,
    seed: int,
    deadline: float,
) -> Iterator[CurvePoint]:
    """The points of one split, until the deadline; at least the first."""
    ends = set(corners(pool))
    order = [i for i in np.random.default_rng(seed).permutation(len(pool)) if i not in ends]
    chance = [*sorted(ends), *order]
    active = chance[:FIRST]
    for size in np.unique(np.geomspace(FIRST, len(pool), POINTS).round().astype(int)).tolist():
        active += _most_telling(pool, active, fit, size - len(active), seed)
        by_chance = _error([pool[i] for i in chance[:size]], test, fit)
        same = size in (FIRST, len(pool))  # then both have chosen the same
        yield CurvePoint(
            size, by_chance if same else _error([pool[i] for i in active], test, fit), by_chance
        )
        if perf_counter() > deadline:
            return


def _split(
    records: Sequence[LatencyRecord], offset: int
) -> tuple[list[LatencyRecord], list[LatencyRecord]]:
    """Pool and test; what holds a group's lowest or highest width, or was disturbed, is pool."""
    pooled = {*corners(records), *np.flatnonzero(~calm(records))}
    order = [i for i in np.argsort([record.ratio for record in records]) if i not in pooled]
    test = set(order[offset::TEST_EVERY][: len(order) // TEST_EVERY])
    return (
        [record for i, record in enumerate(records) if i not in test],
        [records[i] for i in sorted(test)],
    )


def _most_telling(
    pool: Sequence[LatencyRecord], taken: Sequence[int], fit: Fit, count: int, seed: int
) -> list[int]:
    """Indices of `count` more of the pool, where LPNets fitted on those taken disagree most."""
    rest = [i for i in range(len(pool)) if i not in set(taken)]
    if count >= len(rest):
        return rest
    if count <= 0:
        return []
    kept = np.array([pool[i].widths.kept for i in rest], float)
    logs = ensemble([pool[i] for i in taken], fit, kept, seed=seed)
    shares = kept / np.array([record.widths.kept for record in pool]).max(0)
    return [rest[index] for index in spread_out(logs.std(0), shares, count)]


def _error(train: Sequence[LatencyRecord], test: Sequence[LatencyRecord], fit: Fit) -> float:
    """Mean |predicted / measured - 1|; the scale is the training records' own."""
    predict = fit(train)
    scale = np.median([record.anchor_ms for record in train])
    predicted = predict(_kept(test)) / scale
    return float(np.mean(np.abs(predicted / np.array([r.ratio for r in test]) - 1)))


def _kept(records: Sequence[LatencyRecord]) -> NDArray[np.float64]:
    return np.array([record.widths.kept for record in records], float)
