"""Which widths to measure: a fixed sequence, any prefix of which covers the latency range."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from calibration.branches import members
from calibration.widths import ChannelGroups, WidthVector, legal_widths

GOLDEN = 0.6180339887498949  # low-discrepancy step: every prefix is spread evenly
# of one group's width around the joint one, as a share of its range; in turns. A solver likes
# mixtures of full and narrow groups: without the wide spread an LPNet never saw one
SPREADS = (0.2, 0.6, 0.2)
GONE = (0.0, 0.2, 0.0, 0.5)  # share of the removable branches that are left out, in turns
CHANGED = 0.15  # of the branches near a plan that come back or go


def width_sequence(groups: ChannelGroups, multiple: int, *, seed: int) -> Iterator[WidthVector]:
    """Distinct legal width vectors without end, or until there are no more.

    First the corners (all full, all at the floor, removable branches gone and there), then joint
    samples: a common openness that walks the whole range, each group scattered around it, some
    branches gone. In between, now and then, one group or branch alone at its floor or alone at
    full, so that single effects are not only seen mixed.
    """
    options = [legal_widths(group.channels, multiple) for group in groups.prunable]
    branches = members(groups.branches, groups.names)
    space = _space([len(widths) for widths in options], branches)
    seen: set[tuple[int, ...]] = set()
    for kept in _proposals(options, branches, np.random.default_rng(seed)):
        if kept not in seen:
            seen.add(kept)
            yield WidthVector(groups.names, kept)
        if len(seen) >= space:
            return


def _space(counts: list[int], branches: list[list[int]]) -> int:
    """How many width vectors there are, at most a milliard."""
    found = 1.0
    for branch in [*branches, *([i] for i in set(range(len(counts))).difference(*branches))]:
        together = float(np.prod([float(counts[index]) for index in branch]))
        found *= together + (branch in branches)
    return int(min(found, 1e9))


def _without(kept: tuple[int, ...], *branches: list[int]) -> tuple[int, ...]:
    return tuple(
        0 if any(index in branch for branch in branches) else width
        for index, width in enumerate(kept)
    )


def _proposals(
    options: list[tuple[int, ...]], branches: list[list[int]], rng: np.random.Generator
) -> Iterator[tuple[int, ...]]:
    full = tuple(widths[-1] for widths in options)
    floor = tuple(widths[0] for widths in options)
    yield full
    yield _without(floor, *branches)
    yield floor
    openness, index = 0.5, 0
    while True:
        openness = (openness + GOLDEN) % 1.0
        where = np.clip(openness + rng.normal(0, SPREADS[index % len(SPREADS)], len(options)), 0, 1)
        kept = tuple(
            widths[round(float(x) * (len(widths) - 1))]
            for widths, x in zip(options, where, strict=True)
        )
        gone = rng.random(len(branches)) < GONE[index % len(GONE)]
        yield _without(kept, *(branch for branch, goes in zip(branches, gone, strict=True) if goes))
        if index % 4 == 3:
            alone = (full, floor)[index % 8 == 7]
            group = (index // 8) % (len(options) + len(branches))
            if group < len(options):
                end = options[group][0 if alone is full else -1]
                yield (*alone[:group], end, *alone[group + 1 :])
            else:
                yield _without(alone, branches[group - len(options)])
        index += 1


def first_widths(
    groups: ChannelGroups, multiple: int, count: int, *, seed: int
) -> tuple[WidthVector, ...]:
    """The first `count` of the sequence; fewer if the network has no more legal widths."""
    return tuple(islice(width_sequence(groups, multiple, seed=seed), count))


def near(
    widths: WidthVector, groups: ChannelGroups, multiple: int, count: int, *, seed: int
) -> tuple[WidthVector, ...]:
    """Up to `count` distinct legal vectors around `widths`: a few groups one or two steps off."""
    rng = np.random.default_rng(seed)
    options = [legal_widths(group.channels, multiple) for group in groups.prunable]
    branches = members(groups.branches, groups.names)
    found: dict[tuple[int, ...], None] = {}
    for _ in range(count * 20):
        kept = []
        for legal, width in zip(options, widths.kept, strict=True):
            here = int(np.abs(np.array(legal) - width).argmin())
            step = int(rng.integers(-2, 3)) if rng.random() < 0.4 else 0
            kept.append(legal[min(max(here + step, 0), len(legal) - 1)])
        changed = rng.random(len(branches)) < CHANGED
        gone = [
            branch
            for branch, differs in zip(branches, changed, strict=True)
            if differs != (not any(widths.kept[index] for index in branch))
        ]
        if (proposed := _without(tuple(kept), *gone)) != widths.kept:
            found.setdefault(proposed)
        if len(found) >= count:
            break
    return tuple(WidthVector(groups.names, kept) for kept in found)
