"""MACs and parameters as objectives: exact, in closed form, differentiable in the kept channels.

Both are sums over weight tensors of products of sizes, each linear in the kept channels; in
float64 no whole number below 9e15 is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.branches import membership
from calibration.cost import LinearSizes, NetworkCost, held_by, rows_owned
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector


@dataclass(frozen=True)
class Count:
    """sum over tensors of constant * product of sizes, on the CPU in float64."""

    channels: Tensor  # (G,)
    constant: Tensor  # (T,)
    full: tuple[Tensor, ...]  # (T,) for each factor: its size in the dense network
    rows: tuple[Tensor, ...]  # (T, G) for each factor: rows that a channel of a group owns
    branches: Tensor  # (B, G): each removable branch's mean over its groups
    held: Tensor  # (T, B): 1 where the tensor goes with the branch, whatever its own sizes

    @classmethod
    def macs(cls, skeleton: Skeleton) -> Self:
        """Multiply-adds of one image."""
        cost = NetworkCost.of(skeleton)
        return cls._of(skeleton, cost.unit_macs, (cost.outputs, cost.inputs))

    @classmethod
    def parameters(cls, skeleton: Skeleton) -> Self:
        """Trained parameters."""
        names = list(skeleton.parameters)
        by_dim = zip_longest(*skeleton.parameters.values(), fillvalue=1)
        factors = [
            LinearSizes(np.array(sizes, float), rows_owned(skeleton.groups, names, dim))
            for dim, sizes in enumerate(by_dim)
        ]
        held = [set(held_by(branch, skeleton)) for branch in skeleton.groups.branches]
        table = np.array([[float(name in each) for each in held] for name in names])
        return cls._of(skeleton, np.ones(len(names)), factors, table)

    @classmethod
    def _of(
        cls,
        skeleton: Skeleton,
        constant: NDArray[np.float64],
        factors: Sequence[LinearSizes],
        held: NDArray[np.float64] | None = None,
    ) -> Self:
        branches = membership(skeleton.groups.branches, skeleton.groups.names)
        if held is None:  # a layer of a branch that goes multiplies by nothing as it is
            held = np.zeros((len(constant), len(branches)))
        return cls(
            channels=torch.from_numpy(skeleton.groups.full().as_array()).double(),
            constant=torch.from_numpy(constant),
            full=tuple(torch.from_numpy(factor.full) for factor in factors),
            rows=tuple(torch.from_numpy(factor.rows) for factor in factors),
            branches=torch.from_numpy(branches),
            held=torch.from_numpy(held),
        )

    def __call__(self, kept: Tensor) -> Tensor:
        """(N, G) kept channels, whole or not, on any device -> (N,) counts on the CPU."""
        gone = self.channels - kept.cpu().double()  # not every GPU has float64
        product = self.constant
        for full, rows in zip(self.full, self.rows, strict=True):
            product = product * (full - gone @ rows.T)
        shares = (kept.cpu().double() / self.channels) @ self.branches.T
        # 1 while anything of the branch is kept; the slope is that of the share
        standing = shares + ((shares > 0).double() - shares).detach()
        return (product * (1 - (1 - standing) @ self.held.T)).sum(1)

    def at(self, widths: WidthVector) -> int:
        """The count of one width vector."""
        return round(float(self(torch.from_numpy(widths.as_array())[None])))
