"""How much others slowed the machine while a network was measured, judged by the anchor.

Whoever computes on the same core's other hardware thread slows a network that lives in its caches
by a third and one that streams its weights by a tenth; whoever takes the memory's bandwidth slows
only the second. Their ratio moves.
Neither preemptions nor stolen time show it. The anchor does: it is the same in all measurements.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.database import LatencyRecord

Array = NDArray[np.float64]

QUIET = 0.1  # the share of measurements that nobody disturbed, at least
# the anchor's own range when nothing else runs, as log ratio: from load to load, and of the medians
# over the six or more fresh processes that a plan is timed in
STEADY, STEADY_OF_SEVERAL = 0.03, 0.01
# A neighbour adds to a log ratio in proportion to the anchor's log slowdown and to the log ratio
# itself: the less two networks have in common, the less they suffer alike. How much depends on what
# it takes from them. The caches: 0.15 to 1 in 20 pairs of measurements (ResNet-18, OpenVINO). The
# memory's bandwidth: down to -0.7, since there the dense network is the one that suffers (VGG-16,
# benchmarks/disturbance.py). Usually, and +- how much:
USUAL, RANGE = 0.3, 0.5
LARGE = 0.6  # a share to expect the worst from
LEAST = 1e-8  # variance of a log latency
CALM = 0.01  # what may have been added to a log ratio that does not matter


def slowdowns(records: Sequence[LatencyRecord], steady: float = STEADY) -> Array:
    """(N,) log of how much longer the anchor took than when nobody else disturbed it."""
    anchors = np.log([record.anchor_ms for record in records])
    found: Array = np.maximum(0.0, anchors - np.quantile(anchors, QUIET) - steady)
    return found


def exposures(records: Sequence[LatencyRecord], steady: float = STEADY) -> Array:
    """(N,) log of what neighbours added to each ratio, if it went by slowdown and size alone."""
    ratios = np.array([record.ratio for record in records])
    found: Array = -slowdowns(records, steady) * np.log(ratios)
    return found


def may_be_off(records: Sequence[LatencyRecord], steady: float = STEADY) -> Array:
    """(N,) what neighbours may have added to each log ratio, up or down, at worst."""
    found: Array = LARGE * np.abs(exposures(records, steady))
    return found


def calm(records: Sequence[LatencyRecord]) -> NDArray[np.bool_]:
    """(N,) whether the machine was quiet enough for the ratio to be right."""
    found: NDArray[np.bool_] = may_be_off(records) <= CALM
    return found


def calmer_half(candidate_ms: Array, anchor_ms: Array) -> NDArray[np.bool_]:
    """(N,) whether a process's median times, (N,) each, are among those of the calmer half.

    Both networks tell together which those are. The anchor alone must not: its process may have
    been lucky with where its memory came to lie, and where it was, any ratio to it is large.
    """
    candidate, anchor = np.log(candidate_ms), np.log(anchor_ms)
    # luck that each network has for itself does not show in a ratio's median, chosen by this sum:
    # its covariance with candidate - anchor is 1 - 1
    unrest = candidate / max(candidate.var(), LEAST) + anchor / max(anchor.var(), LEAST)
    found: NDArray[np.bool_] = unrest <= np.median(unrest)
    return found
