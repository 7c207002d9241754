"""From scores to a plan: widths on the target's fast side that fill the budget; no training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.branches import members
from calibration.skeleton import Skeleton
from calibration.widths import (
    ChannelGroup,
    ChannelGroups,
    Plan,
    WidthVector,
    legal_widths,
    nearest,
)
from pipeline.pruning.moves import Moves, Step, after, total, totals
from pipeline.pruning.worth import Scores, Worth, by_count

UNUSED = 5e-3  # of the budget: not worth a search
TRADES = 512  # pairs of steps whose price is asked for
SAVES = 1e-3  # of the price: what a step must change to be worth an exchange
# (N, G) kept channels -> (N,) milliseconds, multiply-adds or parameters: what the budget bounds
Cost = Callable[[Tensor], Tensor]  # differentiable
Price = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def priced(cost: Cost) -> Price:
    """The cost, on the CPU, for a `Selector`."""

    def price(kept: NDArray[np.float64]) -> NDArray[np.float64]:
        with torch.no_grad():
            found: NDArray[np.float64] = cost(torch.from_numpy(kept).float()).double().numpy()
        return found

    return price


@dataclass(frozen=True)
class Selector:
    """Chooses widths for one network under one cost."""

    skeleton: Skeleton
    price: Price
    multiple: int
    # channels from step to step of the latency, for groups where calibration measured them: widths
    # in between cost what the next step costs, and are not chosen
    steps: Mapping[str, int] = field(default_factory=dict)
    min_width: float = 0.0  # least share of a group's channels
    measured: Worth | None = None  # what widths are worth; without it, the sum of their scores
    exchanges: int = 20  # at most; each makes the plan worth more
    gains: float = 1e-3  # share of a plan's worth below which an exchange is not worth its noise
    ties: float = 5e-3  # share of the dense network's worth that scores do not tell apart
    known: Collection[WidthVector] = ()  # left for others that are worth about as much
    least: float = 0.0  # what such another plan is priced at least

    def choose(
        self,
        scores: Scores,
        start: Sequence[int],
        aim: float,
        regard: Mapping[str, float] | None = None,
    ) -> Plan:
        """The plan near `start` (kept channels per group) that is priced to fit, worth most.

        Too dear: repeatedly take the step down that loses the least worth for what it saves.
        Then use what is left: take the step up with the most worth for what it costs while
        the price stays within `aim`; steps that cost nothing (inside one of the runtime's
        channel blocks) are taken at once. Then, as long as the plan gains by it, give a step up
        for what others make of the room, or take one that others make room for. At last, of plans
        worth about as much, take one that leaves less of the budget unused. Scores say which of a
        group's channels stay; `regard` weighs the groups' channels against each other (1 where it
        is not given).
        """
        names = self.skeleton.groups.names
        widths = self.measured or by_count(scores)
        worth = [widths[n] * (regard or {}).get(n, 1.0) for n in names]
        kept = self._legal(start)
        kept = self._filled(self._fitted(kept, worth, aim), worth, aim)
        for _ in range(self.exchanges):
            exchanged = self._exchanged(kept, worth, aim)
            if exchanged is None:
                break
            kept = exchanged
        kept = self._spent(kept, worth, aim)
        if self._is_known(kept):
            kept = self._another(kept, worth, aim)
        return self.plan(scores, kept)

    def _legal(self, start: Sequence[int]) -> list[int]:
        """The allowed widths nearest to `start`; branches that it leaves out stay out."""
        kept = [
            nearest(widths, near) for widths, near in zip(self._moves.allowed, start, strict=True)
        ]
        for branch in self._moves.branches:
            if not any(start[index] for index in branch):
                kept = after(kept, dict.fromkeys(branch, 0))
        return kept

    def _fitted(
        self,
        kept: list[int],
        worth: list[NDArray[np.float64]],
        aim: float,
        held: Collection[int] = (),
    ) -> list[int]:
        """Steps down, none of groups that are `held`, until the price fits or none is left."""
        while self._prices([kept])[0] > aim:
            best = self._best(kept, worth, -1, np.inf, held)
            if best is None:
                break
            kept = best
        return kept

    def _filled(self, kept: list[int], worth: list[NDArray[np.float64]], aim: float) -> list[int]:
        """Steps up as long as one fits."""
        while best := self._best(kept, worth, +1, aim):
            kept = best
        return kept

    def _exchanged(
        self, kept: list[int], worth: list[NDArray[np.float64]], aim: float
    ) -> list[int] | None:
        """The plan worth most that one exchange leads to; None if none gains."""
        best, most = None, total(kept, worth) * (1 + self.gains)
        for tried in self._tried(kept, worth, aim):
            if (found := total(tried, worth)) > most and self._prices([tried])[0] <= aim:
                best, most = tried, found
        return best

    def _tried(
        self, kept: list[int], worth: list[NDArray[np.float64]], aim: float
    ) -> Iterator[list[int]]:
        """A step given up for what then fits, or taken for what must go to pay for it."""
        for step in self._telling(kept, -1):
            yield self._filled(after(kept, step), worth, aim)
        for step in self._telling(kept, +1):
            paid = self._fitted(after(kept, step), worth, aim, held=step)
            yield self._filled(paid, worth, aim)

    def _spent(self, kept: list[int], worth: list[NDArray[np.float64]], aim: float) -> list[int]:
        """Of plans worth about as much, one that uses the budget: a step down pays for one up.

        Latency comes in blocks of channels, so that the plan worth most may stay far below the
        budget for the sake of a difference in worth that is mere noise of the scores.
        """
        full = self.skeleton.groups.full().kept
        least = total(kept, worth) - self.ties * total(full, worth)
        for _ in range(self.exchanges):
            now = float(self._prices([kept])[0])
            if now >= aim * (1 - UNUSED):
                break
            tried = self._traded(kept, worth, least, now + aim)
            if not len(tried):
                break
            prices = self.price(tried.astype(float))
            prices[prices > aim] = -np.inf
            best = int(np.argmax(prices))
            if prices[best] <= now * (1 + SAVES):
                break
            kept = self._filled(tried[best].tolist(), worth, aim)
        return kept

    def _another(self, kept: list[int], worth: list[NDArray[np.float64]], aim: float) -> list[int]:
        """Of plans a step down and one up away, priced from `least` to `aim`, the one worth most.

        `kept` if all are known that are worth about as much.
        """
        now, full = float(self._prices([kept])[0]), self.skeleton.groups.full().kept
        enough = total(kept, worth) - self.ties * total(full, worth)
        tried = self._traded(kept, worth, enough, now + (self.least + aim) / 2)
        if not len(tried):
            return kept
        prices = self.price(tried.astype(float))
        fit = tried[(self.least <= prices) & (prices <= aim)]
        best_first = fit[np.argsort(-totals(fit, worth), kind="stable")].tolist()
        return next((found for found in best_first if not self._is_known(found)), kept)

    def _is_known(self, kept: Sequence[int]) -> bool:
        return WidthVector(self.skeleton.groups.names, tuple(kept)) in self.known

    def _traded(
        self, kept: list[int], worth: list[NDArray[np.float64]], least: float, both: float
    ) -> NDArray[np.int64]:
        """(N, G) plans one step down and one up, in other groups, worth `least`, near the aim.

        What the two steps change adds up nearly: only pairs whose prices, each step alone, come to
        about `both` (the price now and the aim) are worth asking for.
        """
        down, up = (
            np.array([after(kept, step) for step in self._moves.of(kept, way)], int).reshape(
                -1, len(kept)
            )
            for way in (-1, +1)
        )
        if not len(down) or not len(up):
            return down[:0]
        less, more = (totals(rows, worth) for rows in (down, up))
        cheaper, dearer = (self.price(rows.astype(float)) for rows in (down, up))
        apart = (down != kept).astype(int) @ (up != kept).astype(int).T == 0
        enough = less[:, None] + more - total(kept, worth) >= least
        off = np.abs(cheaper[:, None] + dearer - both)
        pairs = np.argwhere(apart & enough)
        nearest_first = pairs[np.argsort(off[apart & enough], kind="stable")][:TRADES]
        found: NDArray[np.int64] = down[nearest_first[:, 0]] + up[nearest_first[:, 1]] - kept
        return found

    def _telling(self, kept: list[int], direction: int) -> list[Step]:
        """Of the steps, the shortest of each group that changes the price, and the branches."""
        steps = self._moves.of(kept, direction)
        if not steps:
            return []
        now, *prices = self._prices([kept, *(after(kept, step) for step in steps)])
        found: dict[tuple[tuple[int, ...], ...], Step] = {}
        for step, price in zip(steps, prices, strict=True):
            if direction * (price - now) > SAVES * now:
                widths = tuple(step.values())
                whole = 0 in widths or not any(kept[index] for index in step)
                found.setdefault((tuple(step), widths if whole else ()), step)
        return list(found.values())

    def with_free_channels(self, kept: list[int]) -> list[int]:
        """Every group as wide as it can be at the same price."""
        even = [np.arange(group.channels + 1.0) for group in self.skeleton.groups.prunable]
        return self._filled(kept, even, float(self._prices([kept])[0]))

    def allowed(self, group: ChannelGroup) -> tuple[int, ...]:
        """Widths that the group may have: whole steps where one was measured, and the ends."""
        widths = allowed_widths(group, self.multiple, self.min_width)
        step, ends = self.steps.get(group.name, 1), (widths[0], widths[-1])
        return tuple(width for width in widths if width % step == 0 or width in ends)

    def plan(self, scores: Scores, kept: Sequence[int]) -> Plan:
        """Keep the `kept[g]` best-scored channels of each group."""
        names = self.skeleton.groups.names
        rows = {
            name: tuple(sorted(int(i) for i in np.argsort(-scores[name], kind="stable")[:count]))
            for name, count in zip(names, kept, strict=True)
        }
        return Plan(self.skeleton.sha256, rows)

    def _prices(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        return self.price(np.array(rows, dtype=float))

    def _best(
        self,
        kept: list[int],
        worth: list[NDArray[np.float64]],
        direction: int,
        limit: float,
        held: Collection[int] = (),
    ) -> list[int] | None:
        """The widths after the best step in `direction`; None when no step is left."""
        steps = [s for s in self._moves.of(kept, direction) if not s.keys() & set(held)]
        if not steps:
            return None
        now = float(self._prices([kept])[0])
        moved = self._prices([after(kept, step) for step in steps])
        value = np.array(
            [sum(abs(worth[i][w] - worth[i][kept[i]]) for i, w in step.items()) for step in steps]
        )
        price = np.maximum(np.abs(moved - now), 1e-6 * now)
        rank = value / price if direction > 0 else -value / price
        # a wiggle of a predictor must not reward growth, nor shrinking that saves nothing
        useful = moved <= limit if direction > 0 else moved < now
        if useful.any():
            rank = np.where(useful, rank, -np.inf)
        elif direction > 0:
            return None
        return after(kept, steps[int(np.argmax(rank))])

    @cached_property
    def _moves(self) -> Moves:
        groups = self.skeleton.groups
        allowed = tuple(self.allowed(group) for group in groups.prunable)
        return Moves(allowed, members(groups.branches, groups.names))


def allowed_widths(group: ChannelGroup, multiple: int, min_width: float) -> tuple[int, ...]:
    """The group's legal widths of at least `min_width` of its channels."""
    legal = legal_widths(group.channels, multiple)
    return tuple(width for width in legal if width >= min_width * group.channels)


def narrowest(groups: ChannelGroups, multiple: int, min_width: float) -> WidthVector:
    """The least width of every group, while its branch stays."""
    widths = (allowed_widths(group, multiple, min_width)[0] for group in groups.prunable)
    return WidthVector(groups.names, tuple(widths))
