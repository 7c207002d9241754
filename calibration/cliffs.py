"""Width cliffs: at which multiples of channels the latency of a group steps, by measurement.

One group is narrowed while all others stay full. Four laws are held against what was measured:
latency that falls with every channel, or only at every 8th, 16th or 32nd. They have equally many
free numbers, so the difference of their chi-squares is the evidence for the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.cost import NetworkCost
from calibration.database import LatencyRecord
from calibration.skeleton import Skeleton
from calibration.widths import ChannelGroup, ChannelGroups, WidthVector, legal_widths

STEPS = (1, 8, 16, 32)  # of channels; 1: no step
LADDER = (4, 8, 12, 16, 20, 24, 28, 32)  # channels below full at which a group is measured
FEWEST_POINTS = 4
CLEAR = 6.0  # difference of chi-squares: the second best law is exp(3) = 20 times less likely
Z95 = 1.96


@dataclass(frozen=True)
class Cliff:
    """The step map of one group: what was measured, and the law that explains it."""

    group: str
    channels: int
    step: int | None  # channels from step to step; 1: falls with every channel; None: not clear
    evidence: float  # chi-square of the second best law less that of the best
    drop: float  # of the latency from step to step, as a share of the dense network's
    widths: tuple[int, ...]
    ratios: tuple[float, ...]  # to the dense network, as measured
    errors: tuple[float, ...]  # half widths of their 95 % intervals

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def probes(skeleton: Skeleton, count: int) -> tuple[WidthVector, ...]:
    """Up to `count` networks with one narrowed group each, for the groups that cost most.

    A group is swept whole or not at all: half a ladder tells nothing.
    """
    groups, found = skeleton.groups, list[WidthVector]()
    for index in _costliest(skeleton):
        group = groups.prunable[index]
        ladder = [narrowed(groups, {group.name: width}) for width in _ladder(group)]
        if len(ladder) >= FEWEST_POINTS - 1 and len(found) + len(ladder) <= count:
            found += ladder
    return tuple(found)


def step_maps(groups: ChannelGroups, records: Sequence[LatencyRecord]) -> tuple[Cliff, ...]:
    """The step map of every group that was swept, in group order."""
    full = groups.full().kept
    swept: dict[int, list[tuple[int, LatencyRecord]]] = {}
    dense = [record for record in records if record.widths.kept == full]
    for record in records:
        others = [i for i, width in enumerate(record.widths.kept) if width != full[i]]
        if len(others) == 1 and record.widths.kept[others[0]]:  # a branch that goes is no step
            swept.setdefault(others[0], []).append((record.widths.kept[others[0]], record))
    found = []
    for index, points in sorted(swept.items()):
        group = groups.prunable[index]
        near = [(w, r) for w, r in points if w >= group.channels - max(LADDER)]
        every = sorted([*near, *((group.channels, r) for r in dense)], key=lambda item: -item[0])
        if len(every) >= FEWEST_POINTS:
            found.append(_judged(group, every))
    return tuple(found)


def snapping(cliffs: Sequence[Cliff]) -> Mapping[str, int]:
    """For each group with a clear step, that step: widths between two steps gain nothing."""
    return {
        cliff.group: cliff.step for cliff in cliffs if cliff.step is not None and cliff.step > 1
    }


def _judged(group: ChannelGroup, points: Sequence[tuple[int, LatencyRecord]]) -> Cliff:
    widths = np.array([width for width, _ in points], float)
    ratios = np.array([record.ratio for _, record in points])
    errors = np.array([(r.ratio_ci95[1] - r.ratio_ci95[0]) / 2 for _, r in points])
    laws = [_law(widths, ratios, errors / Z95, step) for step in STEPS]
    order = sorted(range(len(STEPS)), key=lambda i: laws[i][0])
    best, second = order[0], order[1]
    # where even the best law misses by more than the intervals allow, those are too narrow
    excess = max(1.0, laws[best][0] / (len(points) - 2))
    evidence = (laws[second][0] - laws[best][0]) / excess
    slope = laws[best][1]
    clear = evidence >= CLEAR and slope > 0
    return Cliff(
        group=group.name,
        channels=group.channels,
        step=STEPS[best] if clear else None,
        evidence=float(evidence),
        drop=float(slope * STEPS[best]),
        widths=tuple(int(width) for width in widths),
        ratios=tuple(ratios.tolist()),
        errors=tuple(errors.tolist()),
    )


def _law(
    widths: NDArray[np.float64],
    ratios: NDArray[np.float64],
    sigma: NDArray[np.float64],
    step: int,
) -> tuple[float, float]:
    """Chi-square and slope (ratio a channel) of ratio = a + slope * (width rounded up to step)."""
    rounded = np.ceil(widths / step) * step
    design = np.stack([np.ones_like(rounded), rounded], axis=1) / sigma[:, None]
    solution, *_ = np.linalg.lstsq(design, ratios / sigma, rcond=None)
    misses = design @ solution - ratios / sigma
    return float(misses @ misses), float(solution[1])


def _ladder(group: ChannelGroup) -> list[int]:
    floor = legal_widths(group.channels, 1)[0]
    return [group.channels - less for less in LADDER if group.channels - less >= floor]


def narrowed(groups: ChannelGroups, kept: Mapping[str, int]) -> WidthVector:
    """All groups whole but those that `kept` names."""
    full = groups.full()
    pairs = zip(full.groups, full.kept, strict=True)
    return WidthVector(full.groups, tuple(kept.get(name, width) for name, width in pairs))


def _costliest(skeleton: Skeleton) -> list[int]:
    """Groups by the multiply-adds that one channel less saves, most first."""
    cost = NetworkCost.of(skeleton)
    full = cost.channels
    one_less = np.tile(full, (len(full) + 1, 1)) - np.eye(len(full) + 1, len(full))
    macs = cost.layer_macs(one_less).sum(1)
    return [int(index) for index in np.argsort(macs[:-1], kind="stable")]
