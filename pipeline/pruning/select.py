"""From scores to a plan: widths on the target's fast side that fill the budget; no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.skeleton import Skeleton
from calibration.widths import Plan, WidthVector, legal_widths, snap

Scores = Mapping[str, NDArray[np.float64]]  # group -> (channels,), higher is kept
Predict = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # (N, G) -> (N,) milliseconds


@dataclass(frozen=True)
class Selector:
    """Chooses widths for one network under one predictor."""

    skeleton: Skeleton
    predict_ms: Predict
    multiple: int

    def choose(self, scores: Scores, start: Sequence[int], aim_ms: float) -> Plan:
        """The plan nearest to `start` (kept channels per group) that is predicted to fit.

        Too slow: repeatedly take the step down that loses the least score for each millisecond
        saved. Then use what is left: take the step up with the most score a millisecond while
        the prediction stays within `aim_ms`; steps that cost nothing (inside one of the runtime's
        channel blocks) are taken at once.
        """
        full = self.skeleton.groups.full().kept
        kept = list(snap(start, full, self.multiple))
        worth = [_cumulative(scores[name]) for name in self.skeleton.groups.names]
        while self._ms([kept])[0] > aim_ms and (best := self._best(kept, worth, -1, np.inf)):
            kept[best[0]] = best[1]
        while best := self._best(kept, worth, +1, aim_ms):
            kept[best[0]] = best[1]
        return self.plan(scores, kept)

    def plan(self, scores: Scores, kept: Sequence[int]) -> Plan:
        """Keep the `kept[g]` best-scored channels of each group."""
        names = self.skeleton.groups.names
        rows = {
            name: tuple(sorted(int(i) for i in np.argsort(-scores[name], kind="stable")[:count]))
            for name, count in zip(names, kept, strict=True)
        }
        return Plan(self.skeleton.sha256, rows)

    def _ms(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        return self.predict_ms(np.array(rows, dtype=float))

    def _best(
        self,
        kept: list[int],
        worth: list[NDArray[np.float64]],
        direction: int,
        limit_ms: float,
    ) -> tuple[int, int] | None:
        """The best (group, width) a step in `direction`; None when no step is left."""
        steps = [
            (index, width)
            for index, group in enumerate(self.skeleton.groups.prunable)
            for width in _next(legal_widths(group.channels, self.multiple), kept[index], direction)
        ]
        if not steps:
            return None
        now = float(self._ms([kept])[0])
        moved = self._ms([[*kept[:i], width, *kept[i + 1 :]] for i, width in steps])
        value = np.array([abs(worth[i][width] - worth[i][kept[i]]) for i, width in steps])
        price = np.maximum(np.abs(moved - now), 1e-6 * now)
        rank = value / price if direction > 0 else -value / price
        # a wiggle of the predictor must not reward growth, nor shrinking that saves nothing
        useful = moved <= limit_ms if direction > 0 else moved < now
        if not useful.any():
            return None if direction > 0 else steps[int(np.argmax(rank))]
        return steps[int(np.argmax(np.where(useful, rank, -np.inf)))]


def _next(legal: tuple[int, ...], width: int, direction: int) -> list[int]:
    if direction > 0:
        return [w for w in legal if w > width][:1]
    return [w for w in legal if w < width][-1:]


def _cumulative(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """worth[k] = summed score of the k best channels, shifted to be positive, scaled to mean 1.

    Without the scale, a layer whose scores are all large would never be narrowed (methods: layers
    are not comparable).
    """
    ordered = np.sort(scores)[::-1]
    positive = ordered - ordered[-1] + 0.1 * max(float(np.ptp(ordered)), 1e-12)
    return np.concatenate([[0.0], np.cumsum(positive / positive.mean())])


def uniform_widths(selector: Selector, aim_ms: float) -> WidthVector:
    """The widest common share of channels that is predicted to fit: the plainest baseline."""
    groups, multiple = selector.skeleton.groups, selector.multiple
    full, floor = groups.full().as_array(), groups.floor(multiple).as_array()
    for share in np.linspace(1, 0, 201):
        kept = snap(np.maximum(full * share, floor).tolist(), full.tolist(), multiple)
        if selector.predict_ms(np.array([kept], float))[0] <= aim_ms:
            return WidthVector(groups.names, kept)
    return groups.floor(multiple)
