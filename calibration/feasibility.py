"""What pruning can reach on this target, from the measurements, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from calibration.branches import members
from calibration.cost import NetworkCost
from calibration.database import LatencyRecord
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector

Array = NDArray[np.float64]
Predict = Callable[[Array], Array]  # (N, G) kept channels -> (N,) milliseconds

HARDLY = 0.85  # of the dense latency left at minimum widths: pruning does not help
DOMINANT = 0.5  # share of the latency that no width changes


@dataclass(frozen=True)
class Parts:
    """What the dense latency consists of, as shares that add up to about 1."""

    compute: float  # grows with multiply-adds
    traffic: float  # grows with the activations that layers write
    fixed: float  # the same at every width: launches, layers that stay full


@dataclass(frozen=True)
class GroupShare:
    """What one group can give."""

    group: str
    channels: int
    removable: float  # share of the dense latency that goes when this group alone is narrowest


@dataclass(frozen=True)
class Feasibility:
    """The floor, where the time goes, and what that means in words."""

    floor_ms: float  # of the fastest network measured
    floor_ratio: float  # of the dense latency
    parts: Parts
    groups: tuple[GroupShare, ...]  # in group order

    @classmethod
    def of(
        cls,
        skeleton: Skeleton,
        records: Sequence[LatencyRecord],
        predict: Predict,
        floor: WidthVector,
        dense_ms: float,
    ) -> Feasibility:
        """From measured networks and the predictor fitted on them; `floor`: minimum widths."""
        # not the narrowest one's: a runtime can be slower with fewer channels, and a disturbed
        # measurement of that one must not have budgets refused that others were seen to meet
        ratio = min(record.ratio for record in records)
        shares = group_shares(skeleton, predict, floor)
        return cls(ratio * dense_ms, ratio, parts_of(skeleton, records), shares)

    @property
    def speedup(self) -> float:
        """The most that pruning can reach: dense latency over the floor."""
        return 1 / self.floor_ratio

    def verdict(self, aim: float | None = None) -> str:
        """One sentence; `aim` is the budget as a share of the dense latency."""
        reach = f"at most {self.speedup:.2f} times faster ({self.floor_ms:.3f} ms)"
        fixed = f"{self.parts.fixed:.0%} of the latency is the same at every width"
        if self.floor_ratio >= HARDLY:
            return f"pruning will not help here: {reach} at minimum widths; {fixed}"
        if aim is not None and self.floor_ratio > aim:
            return f"the budget of {aim:.2f}x is out of reach: {reach}; {fixed}"
        if self.parts.fixed >= DOMINANT:
            return f"pruning will help little here: {fixed}, so {reach} at minimum widths"
        most = max(self.groups, key=lambda item: item.removable)
        return f"{reach} at minimum widths; the largest single gain is {most.group}'s"

    def to_json(self, aim: float | None = None) -> dict[str, Any]:
        return {
            "speedup": self.speedup,
            "parts": asdict(self.parts),
            "groups": [asdict(item) for item in self.groups],
            "verdict": self.verdict(aim),
        }


def group_shares(
    skeleton: Skeleton, predict: Predict, floor: WidthVector
) -> tuple[GroupShare, ...]:
    """For each group, the share of the dense latency that narrowing it alone removes."""
    full = skeleton.groups.full().as_array().astype(float)
    alone = np.tile(full, (len(full) + 1, 1))
    diagonal = np.arange(len(full))
    alone[diagonal, diagonal] = floor.as_array()
    for branch in members(skeleton.groups.branches, skeleton.groups.names):
        alone[np.ix_(branch, branch)] = floor.as_array()[branch]  # its groups go together
    predicted = predict(alone)
    removed = np.maximum(0.0, 1 - predicted[:-1] / predicted[-1])
    return tuple(
        GroupShare(group.name, group.channels, float(share))
        for group, share in zip(skeleton.groups.prunable, removed, strict=True)
    )


def parts_of(skeleton: Skeleton, records: Sequence[LatencyRecord]) -> Parts:
    """Non-negative least squares of the measured ratios on compute, traffic and a constant."""
    kept = np.array([record.widths.kept for record in records], float)
    ratios = np.array([record.ratio for record in records])
    cost, full = NetworkCost.of(skeleton), skeleton.groups.full().as_array().astype(float)[None]
    positions = np.array([layer.positions for layer in skeleton.layers], float)

    def features(widths: Array) -> Array:
        macs = cost.layer_macs(widths).sum(1)
        # what has no input left went with its branch
        outputs = cost.outputs.at(widths, cost.channels)
        written = (outputs * (cost.inputs.at(widths, cost.channels) > 0)) @ positions
        return np.stack([macs, written, np.ones(len(widths))], axis=1)

    dense = features(full)[0]
    # divided by the ratio: a miss of 1 % counts the same for slow and for fast networks
    solution, _ = nnls(features(kept) / dense / ratios[:, None], np.ones(len(ratios)))
    return Parts(*(float(share) for share in solution))
