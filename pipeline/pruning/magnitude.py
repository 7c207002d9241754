"""Baselines that need no training to decide: filter norms and uniform widths.

L1 norm of filters: Li et al., "Pruning Filters for Efficient ConvNets" (arXiv 1608.08710).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from calibration.skeleton import Skeleton
from calibration.widths import Plan
from pipeline.pruning.gates import filters_of, is_filter_bank
from pipeline.pruning.select import Cost, Selector, uniform_widths
from pipeline.training import Trainer


def l1_scores(model: nn.Module, skeleton: Skeleton) -> dict[str, NDArray[np.float64]]:
    """Group -> (channels,) mean |weight| of the filters that make each channel."""
    scores = {}
    with torch.no_grad():
        for group in skeleton.groups.prunable:
            producers = [piece for piece in group.slices if is_filter_bank(piece, model)]
            norms = [filters_of(model, piece).abs().mean(1) for piece in producers]
            scores[group.name] = torch.stack(norms).mean(0).double().cpu().numpy()
    return scores


class L1Norm:
    """Widths and channels by filter norm: the least norm lost for what each step saves."""

    def __init__(self, model: nn.Module, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        self.trained = nn.ModuleDict({"model": model})
        self._scores = l1_scores(model, skeleton)

    def solving_epochs(self, epochs: int) -> int:
        return 0

    def solve(self, trainer: Trainer, cost: Cost, aim: float, *, ramp: bool = True) -> None:
        """Nothing to learn: the dense weights decide."""

    def propose(self, selector: Selector, aim: float) -> Plan:
        return selector.choose(self._scores, self.skeleton.groups.full().kept, aim)


class UniformWidth(L1Norm):
    """The same share of every group, the filters of largest norm: the uniformly thinner net."""

    def propose(self, selector: Selector, aim: float) -> Plan:
        return selector.plan(self._scores, uniform_widths(selector, aim).kept)
