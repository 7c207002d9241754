"""Data sets held in memory as decoded pixels, augmented a whole batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipeline.data.base import DataCard, ImageData, Split
from pipeline.data.splits import epoch_indices
from pipeline.errors import DataError


@dataclass(frozen=True)
class BatchAugment:
    """Random shift by up to `pad` pixels, mirrored or black at the border, and horizontal flip.

    Names on a card: `crop:PAD` (mirrored border), `shift:PAD` (black border), `flip`.
    """

    pad: int = 0
    mirrored: bool = True
    flip: bool = False

    @classmethod
    def from_names(cls, names: tuple[str, ...]) -> Self:
        """Read the card's names; an unknown one is refused, not ignored."""
        pad, mirrored, flip = 0, True, False
        for name in names:
            kind, _, amount = name.partition(":")
            if kind in ("crop", "shift") and amount.isdigit():
                pad, mirrored = int(amount), kind == "crop"
            elif name == "flip":
                flip = True
            else:
                raise DataError(
                    f"unknown augmentation {name!r}", fix="use crop:PIXELS, shift:PIXELS, flip"
                )
        return cls(pad=pad, mirrored=mirrored, flip=flip)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Row and column shifts (n, 2) in pixels and flips (n,), for one epoch."""
        shifts = rng.integers(-self.pad, self.pad + 1, size=(n, 2))
        flips = rng.random(n) < (0.5 if self.flip else 0.0)
        return torch.from_numpy(shifts), torch.from_numpy(flips)

    def apply(self, images: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
        """(n, C, H, W) of any type -> the same shape and type; shifts (n, 2), flips (n,)."""
        n, channels, height, width = images.shape
        columns = torch.arange(width).repeat(n, 1)
        columns = torch.where(flips[:, None], width - 1 - columns, columns) + shifts[:, 1:]
        rows = torch.arange(height) + shifts[:, :1]
        at = _inside(rows, height)[:, :, None] * width + _inside(columns, width)[:, None, :]
        at = at.reshape(n, 1, height * width).expand(n, channels, height * width)
        moved = images.flatten(2).gather(2, at).view_as(images)
        if self.mirrored or self.pad == 0:
            return moved
        seen = _is_inside(rows, height)[:, :, None] & _is_inside(columns, width)[:, None, :]
        return moved * seen[:, None].to(images.dtype)


def _inside(at: Tensor, size: int) -> Tensor:
    """Coordinates mirrored at both ends into 0..size-1, the border pixel itself not repeated."""
    last = size - 1
    return (last - (last - at.abs()).abs()).clamp_(0, last)


def _is_inside(at: Tensor, size: int) -> Tensor:
    return (at >= 0) & (at < size)


class InMemoryImages(ImageData):
    """Splits of decoded images: uint8 pixels of 0..255, or floats in the card's units."""

    def __init__(self, card: DataCard, splits: Mapping[Split, tuple[Tensor, Tensor]]) -> None:
        self.card = card
        self._splits = dict(splits)
        self._augment = BatchAugment.from_names(card.augment)
        self._mean = torch.tensor(card.mean).view(-1, 1, 1)
        self._std = torch.tensor(card.std).view(-1, 1, 1)

    def labels(self, split: Split) -> Tensor:
        """Labels (n,) int64 of the split, in its order."""
        return self._splits[split][1]

    def take(self, split: Split, indices: Tensor) -> Tensor:
        """Images (len(indices), C, H, W) float32, normalised, not augmented."""
        return self._normalised(self._splits[split][0][indices])

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, augmented and normalised batches, the same for the same (seed, epoch)."""
        images, labels = self._splits["train"]
        rng = np.random.default_rng((seed, epoch))
        shifts, flips = self._augment.draw(len(labels), rng)
        for indices in epoch_indices(len(labels), batch_size, rng=rng):
            at = torch.from_numpy(indices)
            moved = self._augment.apply(images[at], shifts[at], flips[at])
            yield self._normalised(moved), labels[at]

    def _normalised(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return (images.float() - self._mean) / self._std
        return images.float().sub_(self._mean * 255).div_(self._std * 255)
