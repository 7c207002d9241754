"""What a data set is: its card, and batches of normalised images with their labels."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Literal, Self

import torch
from torch import Tensor

from pipeline.data.splits import stratified_order
from pipeline.errors import DataError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class DataCard:
    """What a run records about its data; mean and std are per channel, in units of 0..1 pixels."""

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (C, H, W)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: Mapping[str, int]  # split -> images in use
    skipped: tuple[str, ...]  # corrupt images, names relative to the data's root
    digest: str  # SHA-256 over names, sizes and labels, or over the arrays
    augment: tuple[str, ...]  # names of the training augmentations, such as "crop:4", "flip"

    def to_json(self) -> str:
        """The card as JSON text; `from_json` gives an equal card."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        try:
            fields = json.loads(text)
            for key in ("classes", "mean", "std", "skipped", "augment"):
                fields[key] = tuple(fields[key])
            channels, height, width = fields.pop("image_shape")
            return cls(image_shape=(channels, height, width), **fields)
        except (ValueError, KeyError, TypeError, AttributeError) as failure:
            raise DataError(
                f"this is no data card: {failure}", fix="run: pipeline prepare"
            ) from failure


@dataclass(frozen=True)
class Part:
    """What of an epoch is wanted: batches from number `start` on, and of those what one of several
    processes takes."""

    start: int = 0
    rank: int = 0
    of: int = 1


WHOLE = Part()


class ImageData(ABC):
    """Three splits of labelled images; every order is fixed by seeds, never by the clock."""

    card: DataCard

    @abstractmethod
    def labels(self, split: Split) -> Tensor:
        """Labels (n,) int64 of the split, in its order."""

    @abstractmethod
    def take(self, split: Split, indices: Tensor) -> Tensor:
        """Images (len(indices), C, H, W) float32, normalised, not augmented."""

    @abstractmethod
    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, augmented (images (n, C, H, W) float32, labels (n,) int64); a last batch of
        one image is dropped. The same (batch_size, seed, epoch) gives the same batches."""

    def train_part(
        self, batch_size: int, *, seed: int, epoch: int, part: Part
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`train_batches` from batch `part.start` on, of each every `part.of`-th image."""
        batches = self.train_batches(batch_size, seed=seed, epoch=epoch)
        for images, labels in islice(batches, part.start, None):
            yield images[part.rank :: part.of], labels[part.rank :: part.of]

    def batches(self, split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of the split in order, as (images (n, C, H, W) float32, labels (n,) int64)."""
        return self.batches_part(split, batch_size, WHOLE)

    def batches_part(
        self, split: Split, batch_size: int, part: Part
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`batches` from number `part.start` on, of those every `part.of`-th."""
        labels = self.labels(split)
        for number in range(part.start + part.rank, -(-len(labels) // batch_size), part.of):
            start = number * batch_size
            indices = torch.arange(start, min(start + batch_size, len(labels)))
            yield self.take(split, indices), labels[indices]

    def on(self, device: torch.device) -> ImageData:
        """The same data with its batches on `device`, where the data can do that itself."""
        return self

    def size(self, split: Split) -> int:
        """Images in the split."""
        return len(self.labels(split))

    def images(self, split: Split, n: int) -> tuple[Tensor, Tensor]:
        """The first n, or all, of a fixed order in which every prefix mixes the classes."""
        labels = self.labels(split)
        order = torch.from_numpy(stratified_order(labels.numpy(), seed=0)[:n])
        return self.take(split, order), labels[order]
