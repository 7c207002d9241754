"""How a data set is to be read: what the caller asked for, and the constants all readers share."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.decode import Progress

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ReadOptions:
    """Sizes in pixels and bytes, `limit` in training images; None leaves the choice to the data."""

    image_size: int | None
    seed: int
    limit: int | None
    cache_bytes: int
    progress: Progress | None = None
