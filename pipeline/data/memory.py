"""Data sets held in memory as decoded pixels, augmented a whole batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipeline.data.base import WHOLE, DataCard, ImageData, Part, Split
from pipeline.data.rand_augment import each_seeded, rand_augment
from pipeline.data.splits import in_batches
from pipeline.errors import DataError

DEVICE_SHARE = 0.25  # of a GPU's free memory that images may take


@dataclass(frozen=True)
class BatchAugment:
    """Random shift by up to `pad` pixels, mirrored or black at the border, and horizontal flip.

    Names on a card: `crop:PAD` (mirrored border), `shift:PAD` (black border), `flip`, and
    `randaugment:MAGNITUDE`, which comes after them.
    """

    pad: int = 0
    mirrored: bool = True
    flip: bool = False
    magnitude: int = 0

    @classmethod
    def from_names(cls, names: tuple[str, ...]) -> Self:
        """Read the card's names; an unknown one is refused, not ignored."""
        pad, mirrored, flip, magnitude = 0, True, False, 0
        for name in names:
            kind, _, amount = name.partition(":")
            if kind in ("crop", "shift") and amount.isdigit():
                pad, mirrored = int(amount), kind == "crop"
            elif kind == "randaugment" and amount.isdigit():
                magnitude = int(amount)
            elif name == "flip":
                flip = True
            else:
                raise DataError(
                    f"unknown augmentation {name!r}",
                    fix="use crop:PIXELS, shift:PIXELS, flip, randaugment:MAGNITUDE",
                )
        return cls(pad=pad, mirrored=mirrored, flip=flip, magnitude=magnitude)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Row and column shifts (n, 2) in pixels and flips (n,), for one epoch."""
        shifts = rng.integers(-self.pad, self.pad + 1, size=(n, 2))
        flips = rng.random(n) < (0.5 if self.flip else 0.0)
        return torch.from_numpy(shifts), torch.from_numpy(flips)

    def apply(self, images: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
        """(n, C, H, W) of any type -> the same shape and type; shifts (n, 2), flips (n,)."""
        n, channels, height, width = images.shape
        shifts, flips = shifts.to(images.device), flips.to(images.device)
        columns = torch.arange(width, device=images.device).repeat(n, 1)
        columns = torch.where(flips[:, None], width - 1 - columns, columns) + shifts[:, 1:]
        rows = torch.arange(height, device=images.device) + shifts[:, :1]
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
        self._elsewhere: dict[torch.device, InMemoryImages] = {}
        floats = any(images.dtype != torch.uint8 for images, _ in splits.values())
        if self._augment.magnitude and floats:
            raise DataError(
                f"{card.name} holds numbers, and RandAugment changes pixels",
                fix="leave --rand-augment out, or give uint8 images",
            )

    def on(self, device: torch.device) -> InMemoryImages:
        """A copy whose images lie on a GPU, if they take a small part of its free memory."""
        if device.type != "cuda" or self._mean.device.type == "cuda":
            return self
        size = sum(images.nbytes for images, _ in self._splits.values())
        if device not in self._elsewhere and size < DEVICE_SHARE * free_bytes(device):
            moved = InMemoryImages(self.card, self._splits)
            moved._move(device)
            self._elsewhere[device] = moved
        return self._elsewhere.get(device, self)

    def _move(self, device: torch.device) -> None:
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        self._splits = {
            split: (images.to(device), labels) for split, (images, labels) in self._splits.items()
        }

    def labels(self, split: Split) -> Tensor:
        """Labels (n,) int64 of the split, in its order."""
        return self._splits[split][1]

    def take(self, split: Split, indices: Tensor) -> Tensor:
        """Images (len(indices), C, H, W) float32, normalised, not augmented."""
        images = self._splits[split][0]
        return self._normalised(images[indices.to(images.device)])

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, augmented and normalised batches, the same for the same (seed, epoch)."""
        return self.train_part(batch_size, seed=seed, epoch=epoch, part=WHOLE)

    def train_part(
        self, batch_size: int, *, seed: int, epoch: int, part: Part
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Those batches from `part.start` on, of each every `part.of`-th image."""
        images, labels = self._splits["train"]
        rng = np.random.default_rng((seed, epoch))
        shifts, flips = self._augment.draw(len(labels), rng)
        order = rng.permutation(len(labels))
        seeds = rng.integers(2**62, size=len(labels))
        for indices in islice(in_batches(order, batch_size), part.start, None):
            mine = indices[part.rank :: part.of]
            at = torch.from_numpy(mine)
            moved = self._augment.apply(images[at.to(images.device)], shifts[at], flips[at])
            if magnitude := self._augment.magnitude:
                moved = each_seeded(rand_augment(magnitude), moved, seeds[mine].tolist())
            yield self._normalised(moved), labels[at]

    def _normalised(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return (images.float() - self._mean) / self._std
        return images.float().sub_(self._mean * 255).div_(self._std * 255)


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nobody uses."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)
