"""Images that lie in files, one by one or in shards: checked, split, decoded now or later."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.base import DataCard, ImageData, Split
from pipeline.data.decode import Pixels, Size, decode, in_threads, intact_size
from pipeline.data.members import Members, Place, place_in
from pipeline.data.memory import InMemoryImages
from pipeline.data.reading import ReadOptions
from pipeline.data.splits import hold_out, stratified_order
from pipeline.data.streaming import StreamingImages
from pipeline.errors import DataError

CORRUPT_SHARE = 0.01  # above it the whole is suspect, not a few of its files
MIXED_SIZE = (224, 224)


@dataclass(frozen=True)
class Listing:
    """Images of one split with their labels (n,)."""

    paths: Sequence[Place]
    labels: NDArray[np.int64]

    def part(self, indices: NDArray[np.int64]) -> Listing:
        """The images at these indices, in their order."""
        if isinstance(self.paths, Members):
            return Listing(self.paths.part(indices), self.labels[indices])
        paths = tuple(self.paths[index] for index in indices.tolist())
        return Listing(paths, self.labels[indices])


def read_images(
    root: Path, found: Mapping[Split, Listing], *, card: DataCard, options: ReadOptions
) -> ImageData:
    """Check and split what was found; small sets are decoded now, large ones stream."""
    splits = _with_val(found)
    if options.limit is not None:
        order = stratified_order(splits["train"].labels, seed=options.seed)
        splits["train"] = splits["train"].part(np.sort(order[: options.limit]))
    return _decoded_or_streamed(root, splits, card=card, options=options)


def _decoded_or_streamed(
    root: Path, splits: Mapping[Split, Listing], *, card: DataCard, options: ReadOptions
) -> ImageData:
    paths = [path for listing in splits.values() for path in listing.paths]
    shapes: list[Size | None] | None = None
    if options.image_size is None:
        shapes = in_threads(intact_size, paths, None)
        size = _common_size({shape for shape in shapes if shape is not None})
    else:
        size = (options.image_size, options.image_size)
    card = replace(card, image_shape=(3, *size))
    if math.prod(card.image_shape) * len(paths) <= options.cache_bytes:
        pixels = in_threads(lambda path: decode(path, size), paths, options.progress)
        broken = {path for path, image in zip(paths, pixels, strict=True) if image is None}
        return _in_memory(splits, pixels, card=_without(card, broken, root=root, of=len(paths)))
    if shapes is None:
        shapes = in_threads(intact_size, paths, options.progress)
    broken = {path for path, shape in zip(paths, shapes, strict=True) if shape is None}
    card = _without(card, broken, root=root, of=len(paths))
    return _streamed(splits, broken, card=card, workers=options.workers)


def _in_memory(
    splits: Mapping[Split, Listing], pixels: list[Pixels | None], *, card: DataCard
) -> ImageData:
    rest = iter(pixels)
    tensors: dict[Split, tuple[Tensor, Tensor]] = {}
    for split, listing in splits.items():
        images = [next(rest) for _ in listing.paths]
        kept = [image for image in images if image is not None]
        labels = listing.labels[[image is not None for image in images]]
        stacked = np.empty((len(kept), *card.image_shape), dtype=np.uint8)
        for place, image in enumerate(kept):
            stacked[place] = image.transpose(2, 0, 1)
        tensors[split] = (torch.from_numpy(stacked), torch.from_numpy(labels))
    counts: dict[str, int] = {split: len(labels) for split, (_, labels) in tensors.items()}
    augment = (f"crop:{min(card.image_shape[1:]) // 8}", "flip", *card.augment)
    return InMemoryImages(replace(card, counts=counts, augment=augment), tensors)


def _streamed(
    splits: Mapping[Split, Listing], broken: set[Place], *, card: DataCard, workers: int | None
) -> ImageData:
    shorter = min(card.image_shape[1:])
    kept = {
        split: listing.part(np.flatnonzero([path not in broken for path in listing.paths]))
        for split, listing in splits.items()
    }
    counts: dict[str, int] = {split: len(listing.paths) for split, listing in kept.items()}
    cut = "random-resized-crop" if shorter >= 64 else f"crop:{shorter // 8}"
    augment = (cut, "flip", *card.augment)
    files = {
        split: (listing.paths, torch.from_numpy(listing.labels)) for split, listing in kept.items()
    }
    return StreamingImages(replace(card, counts=counts, augment=augment), files, workers=workers)


def _common_size(shapes: set[Size]) -> Size:
    return next(iter(shapes)) if len(shapes) == 1 else MIXED_SIZE


def _without(card: DataCard, broken: set[Place], *, root: Path, of: int) -> DataCard:
    names = tuple(sorted(place_in(root, path) for path in broken))
    if len(names) > CORRUPT_SHARE * of:
        raise DataError(
            f"{len(names)} of {of} images under {root} are corrupt: {', '.join(names[:3])}",
            fix="fetch the data again; up to 1 % are skipped",
        )
    return replace(card, skipped=names)


def _with_val(found: Mapping[Split, Listing]) -> dict[Split, Listing]:
    """With one of val/ and test/ that one is the test split, and val is held out of train."""
    if "val" in found and "test" in found:
        return dict(found)
    train, val = hold_out(found["train"].labels)
    test = found["test"] if "test" in found else found["val"]
    return {"train": found["train"].part(train), "val": found["train"].part(val), "test": test}
