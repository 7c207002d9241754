"""What the channels of a group are worth beside those of other groups.

Scores rank the channels of one group; between layers they do not compare. How many channels each
group keeps is decided by their number, or by the training loss without them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from calibration.branches import Branch
from calibration.cliffs import narrowed
from calibration.widths import ChannelGroups, WidthVector

Scores = Mapping[str, NDArray[np.float64]]  # group -> (channels,), higher is kept
Worth = Mapping[str, NDArray[np.float64]]  # group -> (channels + 1,), of its k best-scored channels

SHARES = (0.25, 0.5, 0.75)  # of a group's channels: where the loss is asked for, beside the ends
# of the loss of guessing: what all channels together are worth by their number alone. It decides
# where no loss shows: between channels that fine-tuning may yet use, and before any training
COUNTED = 0.05


def by_count(scores: Scores) -> dict[str, NDArray[np.float64]]:
    """Summed scores, shifted to be positive and scaled to mean 1: a channel is worth one.

    Without the scale, a layer whose scores are all large would never be narrowed (methods: layers
    are not comparable).
    """
    return {name: _summed(values) for name, values in scores.items()}


def _summed(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    ordered = np.sort(scores)[::-1]
    positive = ordered - ordered[-1] + 0.1 * max(float(np.ptp(ordered)), 1e-12)
    return np.concatenate([[0.0], np.cumsum(positive / positive.mean())])


@dataclass(frozen=True)
class Losses:
    """Mean training losses of the dense network with one group narrowed, or one branch gone."""

    dense: float
    guessing: float  # of all classes alike: a network that does worse has lost as much
    groups: Mapping[str, Mapping[int, float]]  # group -> kept channels -> loss; fewer than all
    branches: Mapping[str, float]  # loss without the branch, by its name

    def worth(self, groups: ChannelGroups, scores: Scores) -> Worth:
        """What each group's k best channels keep the loss down by, beside all others.

        What a branch is worth is that of its groups together: of each what it loses down to its
        least width, and an even part of the rest. In between, lines; more channels are never worth
        less.
        """
        whole = {name: self._lost(at[min(at)]) if at else 0.0 for name, at in self.groups.items()}
        for branch in groups.branches:
            whole |= self._shared(branch, whole)
        total = sum(group.channels for group in groups.prunable)
        each = COUNTED * self.guessing / total
        counted = by_count(scores)
        return {
            group.name: self._curve(group.name, group.channels, whole) + each * counted[group.name]
            for group in groups.prunable
        }

    def _lost(self, loss: float) -> float:
        """What the loss rose by; no more than to that of guessing, which is all there is."""
        return max(0.0, min(loss, self.guessing) - self.dense)

    def _shared(self, branch: Branch, least: Mapping[str, float]) -> dict[str, float]:
        """What each of the branch's groups is worth, whole."""
        lost = self._lost(self.branches[branch.name])
        narrowed = sum(least[name] for name in branch.groups)
        if narrowed > lost:
            return {name: least[name] * lost / narrowed for name in branch.groups}
        rest = (lost - narrowed) / len(branch.groups)
        return {name: least[name] + rest for name in branch.groups}

    def _curve(self, name: str, channels: int, whole: Mapping[str, float]) -> NDArray[np.float64]:
        """(channels + 1,) of the loss alone, rising."""
        known = {0: 0.0, channels: whole[name]}
        for kept, loss in self.groups[name].items():
            known[kept] = max(0.0, whole[name] - self._lost(loss))
        at = sorted(known)
        rising = np.maximum.accumulate([known[kept] for kept in at])
        found: NDArray[np.float64] = np.interp(np.arange(channels + 1), at, rising)
        return found

    def to_json(self) -> dict[str, Any]:
        groups = {
            name: [{"kept": kept, "loss": loss} for kept, loss in at.items()]
            for name, at in self.groups.items()
        }
        return {
            "dense": self.dense,
            "guessing": self.guessing,
            "groups": groups,
            "branches": dict(self.branches),
        }

    @classmethod
    def from_json(cls, document: Any) -> Self:
        groups = {
            name: {item["kept"]: item["loss"] for item in items}
            for name, items in document["groups"].items()
        }
        return cls(document["dense"], document["guessing"], groups, document["branches"])


def measure_losses(
    groups: ChannelGroups,
    allowed: Mapping[str, Sequence[int]],
    loss: Callable[[WidthVector], float],
    *,
    classes: int,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Losses:
    """Ask `loss` for the network with each group narrowed alone, at some of its allowed widths.

    `on_done(done, total)` is called after each. One group at a time tells apart what pruning by
    number confounds; that losses add up is an assumption, and holds less the more goes.
    """
    asked = {
        (group.name, kept): narrowed(groups, {group.name: kept})
        for group in groups.prunable
        for kept in _asked(allowed[group.name], group.channels)
    }
    gone = {b.name: narrowed(groups, dict.fromkeys(b.groups, 0)) for b in groups.branches}
    total, guessing = 1 + len(asked) + len(gone), math.log(classes)
    counter = itertools.count(1)

    def told(widths: WidthVector) -> float:
        found = loss(widths)
        on_done(next(counter), total)
        return found if math.isfinite(found) else guessing

    dense = told(groups.full())
    found: dict[str, dict[int, float]] = {group.name: {} for group in groups.prunable}
    for (name, kept), widths in asked.items():
        found[name][kept] = told(widths)
    without = {name: told(widths) for name, widths in gone.items()}
    return Losses(dense, guessing, found, without)


def _asked(allowed: Iterable[int], channels: int) -> list[int]:
    """The least width and those nearest to the shares, without the whole group."""
    widths = sorted(allowed)
    near = {min(widths, key=lambda width: abs(width - share * channels)) for share in SHARES}
    return sorted((near | {widths[0]}) - {channels})
