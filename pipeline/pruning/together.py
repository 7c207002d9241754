"""Losses of whole plans, where those of single groups do not add up.

What goes together may be missed far more, or less, than each part alone: of two residual branches
in a row the second does what the first no longer can. Plans chosen by worth that differs a little
are asked as a whole, as EagleEye asks its candidates (Li et al., arXiv 2007.02491), and the worth
that led to the best of them decides from there on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from calibration.widths import ChannelGroups, WidthVector
from pipeline.pruning.select import Selector
from pipeline.pruning.worth import Scores, Worth

OnDone = Callable[[int, int], None]  # (done, of how many)

SPREAD = 0.5  # standard deviation of the logarithm of what a group's worth is multiplied by


def variants(worth: Worth, groups: ChannelGroups, count: int) -> list[Worth]:
    """The worth as it is, then `count - 1` that weigh the groups otherwise, always the same ones.

    Groups of one branch are weighed alike.
    """
    of = {name: branch.name for branch in groups.branches for name in branch.groups}
    owners = {group.name: of.get(group.name, group.name) for group in groups.prunable}
    several = list(dict.fromkeys(owners.values()))
    rng = np.random.default_rng(0)
    found = [worth]
    for _ in range(count - 1):
        drawn = np.exp(SPREAD * rng.normal(size=len(several)))
        factors = dict(zip(several, drawn, strict=True))
        found.append({name: factors[owner] * worth[name] for name, owner in owners.items()})
    return found


def candidates(
    selector: Selector,
    scores: Scores,
    aim: float,
    worths: Sequence[Worth],
    on_done: OnDone = lambda done, total: None,
) -> dict[WidthVector, int]:
    """What each worth leads to from the dense network: a plan, and the first worth that did."""
    dense = selector.skeleton.groups.full().kept
    found: dict[WidthVector, int] = {}
    for number, worth in enumerate(worths):
        plan = replace(selector, measured=worth).choose(scores, dense, aim)
        found.setdefault(plan.widths(), number)
        on_done(number + 1, len(worths))
    return found


def asked(
    plans: Collection[WidthVector],
    loss: Callable[[WidthVector], float],
    on_done: OnDone = lambda done, total: None,
) -> dict[WidthVector, float]:
    """The loss of each plan as a whole; plans whose loss is no number are left out."""
    found = {}
    for number, widths in enumerate(plans, 1):
        found[widths] = loss(widths)
        on_done(number, len(plans))
    return {widths: lost for widths, lost in found.items() if math.isfinite(lost)}
