"""Uniform widths: the baseline that thins every layer alike, and removes no block."""

from __future__ import annotations

import numpy as np

from calibration.widths import WidthVector, snap
from pipeline.errors import BudgetUnreachableError
from pipeline.pruning.select import Selector, narrowest


def uniform_widths(selector: Selector, aim: float) -> WidthVector:
    """The widest common share of channels that is priced to fit: the plainest baseline.

    Then as much wider as costs nothing, inside the runtime's channel blocks. Where the budget needs
    blocks to go, which are not thinner but gone, BudgetUnreachableError; where there are none that
    could, the narrowest widths.
    """
    groups, multiple = selector.skeleton.groups, selector.multiple
    full, floor = groups.full().as_array(), narrowest(groups, multiple, selector.min_width)
    for share in np.linspace(1, 0, 201):
        near = snap((full * share).tolist(), full.tolist(), multiple)
        kept = tuple(np.maximum(near, floor.as_array()).tolist())
        if selector.price(np.array([kept], float))[0] <= aim:
            return WidthVector(groups.names, tuple(selector.with_free_channels(list(kept))))
    if groups.branches:
        dense, least = selector.price(np.array([full, floor.kept], float))
        raise BudgetUnreachableError(
            f"uniform widths come to {least / dense:.2f}x of dense at least, the budget needs "
            f"{aim / dense:.2f}x",
            fix="choose a --method that lets whole blocks go, such as wgates or l1",
        )
    return floor
