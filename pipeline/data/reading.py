"""How a data set is to be read: what the caller asked for, and the constants all readers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from pipeline.data.decode import Progress

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ReadOptions:
    """Sizes in pixels and bytes, `limit` in training images; None leaves the choice to the data."""

    image_size: int | None = None
    seed: int = 0
    limit: int | None = None
    cache_bytes: int = 2**30
    progress: Progress | None = None
    rand_augment: int = 0  # magnitude; 0: none
    workers: int | None = None  # processes that decode; None: as many as processors

    def augmented(self, *names: str) -> tuple[str, ...]:
        """The data's own augmentations, and what the caller wants on top."""
        return (*names, f"randaugment:{self.rand_augment}") if self.rand_augment else names


class Wanted(TypedDict, total=False):
    """The fields of `ReadOptions`, as keyword arguments."""

    image_size: int | None
    seed: int
    limit: int | None
    cache_bytes: int
    progress: Progress | None
    rand_augment: int
    workers: int | None
