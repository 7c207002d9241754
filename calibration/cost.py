"""MACs and parameters as closed forms of the width vector.

The size of every sliced dimension is linear in the kept channels,
`size = full - sum_g rows_per_channel[g] * (C_g - kept_g)`, so a layer's MACs
(output pixels x kernel x inputs x outputs) are bilinear. Multiply-adds, per image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.branches import Branch, membership
from calibration.skeleton import Skeleton
from calibration.widths import ChannelGroups, WidthVector


@dataclass(frozen=True)
class LinearSizes:
    """Sizes of some tensor dimensions as a linear function of the width vector."""

    full: NDArray[np.float64]  # (L,)
    rows: NDArray[np.float64]  # (L, G): rows a channel of group g owns

    def at(self, kept: NDArray[np.float64], channels: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, G) kept channels of (G,) -> (N, L) sizes."""
        sizes: NDArray[np.float64] = self.full - (channels - kept) @ self.rows.T
        return sizes


@dataclass(frozen=True)
class NetworkCost:
    """Layer shapes of one network as functions of its widths."""

    channels: NDArray[np.float64]  # (G,)
    outputs: LinearSizes
    inputs: LinearSizes
    unit_macs: NDArray[np.float64]  # (L,): MACs of one (input, output) channel pair
    unit_weights: NDArray[np.float64]  # (L,): weights of one such pair
    branches: NDArray[np.float64]  # (B, G): each removable branch's mean over its groups

    @classmethod
    def of(cls, skeleton: Skeleton) -> NetworkCost:
        names = [layer.tensor for layer in skeleton.layers]
        outer = np.array([layer.shape[0] for layer in skeleton.layers], float)
        inner = np.array([layer.shape[1] for layer in skeleton.layers], float)
        kernels = np.array([np.prod(layer.shape[2:]) for layer in skeleton.layers], float)
        positions = np.array([layer.positions for layer in skeleton.layers], float)
        groups = skeleton.groups
        return cls(
            channels=groups.full().as_array().astype(float),
            outputs=LinearSizes(outer, rows_owned(groups, names, 0)),
            inputs=LinearSizes(inner, rows_owned(groups, names, 1)),
            unit_macs=positions * kernels,
            unit_weights=kernels,
            branches=membership(groups.branches, groups.names),
        )

    def layer_macs(self, kept: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, G) kept channels -> (N, L) multiply-adds per image."""
        macs: NDArray[np.float64] = (
            self.unit_macs
            * self.outputs.at(kept, self.channels)
            * self.inputs.at(kept, self.channels)
        )
        return macs

    def macs(self, widths: WidthVector) -> int:
        return round(float(self.layer_macs(widths.as_array().astype(float)[None]).sum()))


def parameter_count(skeleton: Skeleton, widths: WidthVector) -> int:
    """Trained parameters at the given widths."""
    kept = dict(zip(widths.groups, widths.kept, strict=True))
    vanished = {name for b in skeleton.groups.removed(widths) for name in held_by(b, skeleton)}
    removed: dict[tuple[str, int], int] = {}
    for group in skeleton.groups.prunable:
        for piece in group.slices:
            gone = (group.channels - kept[group.name]) * piece.rows_per_channel
            key = (piece.tensor, piece.dim)
            removed[key] = removed.get(key, 0) + gone
    return sum(
        int(np.prod([size - removed.get((name, dim), 0) for dim, size in enumerate(shape)]))
        for name, shape in skeleton.parameters.items()
        if name not in vanished
    )


def held_by(branch: Branch, skeleton: Skeleton) -> list[str]:
    """Trained parameters of the branch's layers."""
    layers = set(branch.layers)
    return [name for name in skeleton.parameters if name.rpartition(".")[0] in layers]


def rows_owned(groups: ChannelGroups, tensors: list[str], dim: int) -> NDArray[np.float64]:
    """(T, G) rows along `dim` of each tensor that one channel of each group owns."""
    table = np.zeros((len(tensors), len(groups.prunable)))
    for column, group in enumerate(groups.prunable):
        for piece in group.slices:
            if piece.dim == dim:  # a weight that two layers share stands in two rows
                of_piece = [tensor == piece.tensor for tensor in tensors]
                table[of_piece, column] += piece.rows_per_channel
    return table
