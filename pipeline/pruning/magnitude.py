"""Baselines that need no training to decide: what the dense weights say, or nothing at all.

L1 norm of filters: Li et al., "Pruning Filters for Efficient ConvNets" (arXiv 1608.08710).
Scale of batch norms: Liu et al., "Network Slimming" (arXiv 1708.06519).
Norm of a group: Fang et al., "DepGraph" (arXiv 2301.12900). Both without their sparse training.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from calibration.skeleton import Skeleton
from calibration.widths import ChannelGroup, Plan
from pipeline.errors import GroupsError
from pipeline.pruning.constraint import Goal
from pipeline.pruning.filters import scales, squares
from pipeline.pruning.select import Selector
from pipeline.pruning.uniform import uniform_widths
from pipeline.pruning.worth import Scores
from pipeline.training import Trainer

Score = Callable[[nn.Module, ChannelGroup], Tensor]  # -> (channels,), higher is kept


def group_norm(model: nn.Module, group: ChannelGroup) -> Tensor:
    """(channels,) L2 norm of all weights that go when the channel goes, biases apart."""
    weights = [piece for piece in group.slices if piece.tensor.endswith(".weight")]
    return torch.stack([squares(model, piece) for piece in weights]).sum(0).sqrt()


def bn_scale(model: nn.Module, group: ChannelGroup) -> Tensor:
    """(channels,) mean |scale| of the batch norms that the channel passes before a gate."""
    found = scales(model, group)
    if found is None:
        raise GroupsError(
            f"--method bn-scale: not every layer of group {group.name} has a batch norm behind it",
            fix="use --method l1, group-norm or wgates",
        )
    return found


def scores_by(score: Score, model: nn.Module, skeleton: Skeleton) -> Scores:
    """Group -> (channels,) scores."""
    with torch.no_grad():
        found = {g.name: score(model, g) for g in skeleton.groups.prunable}
    return {name: values.double().cpu().numpy() for name, values in found.items()}


def drawn_scores(skeleton: Skeleton, seed: int) -> Scores:
    """Group -> (channels,) random scores."""
    rng = np.random.default_rng(seed)
    return {group.name: rng.random(group.channels) for group in skeleton.groups.prunable}


class Ranking:
    """Widths and channels by score: the least of it lost for what each step saves."""

    def __init__(self, model: nn.Module, skeleton: Skeleton, scores: Scores) -> None:
        self.skeleton = skeleton
        self.trained = nn.ModuleDict({"model": model})
        self._scores = scores

    def solving_epochs(self, epochs: int) -> int:
        return 0

    def solve(self, trainer: Trainer, goal: Goal | None, *, ramp: bool = True) -> None:
        """Nothing to learn: the scores decide."""

    def scores(self) -> Scores:
        return self._scores

    def propose(self, selector: Selector, aim: float) -> Plan:
        return selector.choose(self._scores, self.skeleton.groups.full().kept, aim)


class UniformRanking(Ranking):
    """The same share of every group, the channels of the best scores: the uniformly thinner net."""

    def propose(self, selector: Selector, aim: float) -> Plan:
        return selector.plan(self._scores, uniform_widths(selector, aim).kept)


class GivenPlan(Ranking):
    """A plan that was decided elsewhere."""

    def __init__(self, model: nn.Module, skeleton: Skeleton, plan: Plan) -> None:
        if plan.skeleton_sha256 != skeleton.sha256:
            raise GroupsError(
                "the plan is of another skeleton: of other weights, another batch or image size",
                fix="give a plan.json that `pipeline prune` wrote for this very network",
            )
        skeleton.groups.check(plan)
        super().__init__(model, skeleton, {})
        self._plan = plan

    def propose(self, selector: Selector, aim: float) -> Plan:
        return self._plan
