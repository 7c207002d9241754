"""Active sampling: measure next where LPNets that saw different records disagree most.

The database is the only state. Rounds begin at fixed numbers of records, and what a round proposes
depends only on the records before it: a run that was killed proposes the same networks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from calibration.database import LatencyRecord
from calibration.sampling import width_sequence
from calibration.widths import ChannelGroups, WidthVector

Array = NDArray[np.float64]
Predict = Callable[[Array], Array]  # (N, G) kept channels -> (N,) milliseconds
Fit = Callable[[Sequence[LatencyRecord]], Predict]

START = 60  # networks of the fixed sequence before the first round
START_WITH_PRIOR = 24  # where another device's LPNet already knows what weighs how much
GROWTH = 2  # a round adds half of what is there: a fit of a large network takes seconds
MEMBERS = 4  # of the ensemble; each is fitted without another quarter of the records
POOL = 2000  # networks that a round chooses from
BLIND = 4  # every fourth network of a round is the sequence's next: an ensemble can agree wrongly
NEAR, PULL = 0.15, 2.0  # log ratio that is near the budget, and how much more it counts there
ALIKE = 0.08  # root mean square of differences in width shares: such networks tell much the same


@dataclass(frozen=True)
class SamplingPlan:
    """Which networks a calibration measures: a start set, then rounds, `most` in all."""

    groups: ChannelGroups
    multiple: int
    most: int
    seed: int
    probes: tuple[WidthVector, ...] = ()  # measured after the start set, whatever LPNets say
    first: int = START  # networks of the sequence in the start set

    @cached_property
    def start(self) -> tuple[WidthVector, ...]:
        """The networks that need no LPNet to be chosen."""
        first = islice(self._sequence(), min(self.first, self.most))
        return tuple(dict.fromkeys([*first, *self.probes]))[: self.most]

    def round_at(self, records: int) -> tuple[int, int]:
        """At how many records the round began that has come to `records`, and where it ends."""
        begin = len(self.start)
        while (end := begin + max(1, begin // GROWTH)) <= records:
            begin = end
        return min(begin, records), min(end, self.most)

    def propose(
        self,
        records: Sequence[LatencyRecord],
        fit: Fit,
        count: int,
        *,
        aim: float | None = None,
        avoid: AbstractSet[WidthVector] = frozenset(),
    ) -> tuple[WidthVector, ...]:
        """The next `count` networks beside those measured; fewer when no more are left.

        `aim` is the budget as a share of the dense latency, where one is known; `avoid` are
        networks that cannot be measured.
        """
        known = avoid | {record.widths for record in records}
        blind = tuple(islice(unseen(self._sequence(), known), -(-count // BLIND)))
        fresh = width_sequence(self.groups, self.multiple, seed=self.seed + len(records))
        pool = tuple(islice(unseen(islice(fresh, POOL), known | set(blind)), POOL))
        kept = np.array([w.kept for w in (self.groups.full(), *pool)], float)
        logs = ensemble(records, fit, kept, seed=self.seed)
        worth = logs.std(0) * nearness(logs.mean(0) - logs.mean(0)[0], aim)
        chosen = spread_out(worth[1:], kept[1:] / kept[0], count - len(blind))
        return (*(pool[index] for index in chosen), *blind)

    def _sequence(self) -> Iterator[WidthVector]:
        return width_sequence(self.groups, self.multiple, seed=self.seed)


def unseen(
    proposals: Iterable[WidthVector], known: AbstractSet[WidthVector]
) -> Iterator[WidthVector]:
    return (widths for widths in proposals if widths not in known)


def ensemble(records: Sequence[LatencyRecord], fit: Fit, kept: Array, *, seed: int) -> Array:
    """Log of the latencies of `kept` (N, G) as each member predicts them: (MEMBERS, N)."""
    part = np.random.default_rng(seed).permutation(len(records)) % MEMBERS
    part[corners(records)] = -1  # no predictor is asked about widths beyond those it saw
    members = [
        fit([record for record, its in zip(records, part, strict=True) if its != left_out])
        for left_out in range(MEMBERS)
    ]
    return np.log([predict(kept) for predict in members])


def corners(records: Sequence[LatencyRecord]) -> NDArray[np.int64]:
    """For each group the first record at its lowest and the first at its highest width."""
    kept = np.array([record.widths.kept for record in records])
    return np.unique([kept.argmin(0), kept.argmax(0)])


def nearness(log_ratio: Array, aim: float | None) -> Array:
    """How much each network counts, 1 to 1 + PULL: most where it is predicted at the budget."""
    if aim is None:
        return np.ones_like(log_ratio)
    away = (log_ratio - np.log(aim)) / NEAR
    weight: Array = 1 + PULL * np.exp(-0.5 * away**2)
    return weight


def spread_out(worth: Array, shares: Array, count: int) -> list[int]:
    """Indices of up to `count` rows of `shares` (N, G), the worthiest first, no two alike."""
    left, chosen = worth.astype(float).copy(), []
    for _ in range(min(count, len(left))):
        best = int(left.argmax())
        chosen.append(best)
        apart = np.mean((shares - shares[best]) ** 2, axis=1) / ALIKE**2
        left *= 1 - np.exp(-0.5 * apart)
        left[chosen] = -np.inf
    return chosen


@dataclass(frozen=True)
class StopRule:
    """When enough is measured."""

    error: float  # wished mean held-out error
    samples: int
    minutes: float | None

    # 90 % of normal errors are within 2.06 times their mean; more means tails that a mean hides
    INTERVAL = 2.5

    def reason(self, mean: float, interval_90: float, samples: int) -> str | None:
        """Why to stop, in words; None: go on. Time is asked apart, between two networks."""
        if mean <= self.error and interval_90 <= self.INTERVAL * self.error:
            return f"the held-out error is within --lpnet-error {self.error:.1%}"
        if samples >= self.samples:
            return f"--samples {self.samples} are measured"
        return None

    def time_is_up(self, seconds: float) -> bool:
        return self.minutes is not None and seconds >= 60 * self.minutes
