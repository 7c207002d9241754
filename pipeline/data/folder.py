"""`imagefolder:DIR`: DIR/train/<class>/* and DIR/test/<class>/*, DIR/val/<class>/* or both."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.base import DataCard, ImageData, Split
from pipeline.data.decode import SUFFIXES, Pixels, Size, decode, in_threads, intact_size
from pipeline.data.memory import InMemoryImages
from pipeline.data.reading import IMAGENET_MEAN, IMAGENET_STD, ReadOptions
from pipeline.data.splits import hold_out, stratified_order
from pipeline.data.streaming import StreamingImages
from pipeline.errors import DataError

CORRUPT_SHARE = 0.01  # above it the folder itself is suspect, not a few of its files
MIXED_SIZE = (224, 224)
LAYOUT = "DIR/train/<class>/*.jpg and DIR/test/<class>/*.jpg (val/ instead of or beside test/)"


@dataclass(frozen=True)
class Listing:
    """Image files of one split with their labels (n,)."""

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]

    def part(self, indices: NDArray[np.int64]) -> Listing:
        """The files at these indices, in their order."""
        paths = tuple(self.paths[index] for index in indices.tolist())
        return Listing(paths, self.labels[indices])


def load_folder(root: Path, options: ReadOptions) -> ImageData:
    """Read, check and split the folder; small sets are decoded now, large ones stream."""
    classes, found = _found(root)
    digest = _digest(root, found)
    splits = _with_val(found)
    if options.limit is not None:
        order = stratified_order(splits["train"].labels, seed=options.seed)
        splits["train"] = splits["train"].part(np.sort(order[: options.limit]))
    card = DataCard(
        name=f"imagefolder:{root.resolve().name}",
        classes=classes,
        image_shape=(3, 0, 0),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        counts={},
        skipped=(),
        digest=digest,
        augment=options.augmented(),
    )
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
    splits: Mapping[Split, Listing], broken: set[Path], *, card: DataCard, workers: int | None
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


def _without(card: DataCard, broken: set[Path], *, root: Path, of: int) -> DataCard:
    names = tuple(sorted(path.relative_to(root).as_posix() for path in broken))
    if len(names) > CORRUPT_SHARE * of:
        raise DataError(
            f"{len(names)} of {of} images under {root} are corrupt: {', '.join(names[:3])}",
            fix="fetch the data again; up to 1 % are skipped",
        )
    return replace(card, skipped=names)


def _found(root: Path) -> tuple[tuple[str, ...], dict[Split, Listing]]:
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", fix=f"expected {LAYOUT}")
    if not (root / "train").is_dir():
        raise DataError(f"{root} has no train/ folder", fix=f"expected {LAYOUT}")
    others: list[Split] = [name for name in _OTHERS if (root / name).is_dir()]
    if not others:
        raise DataError(f"{root} has no test/ and no val/ folder", fix=f"expected {LAYOUT}")
    classes = _class_names(root / "train")
    for other in others:
        _require_same_classes(classes, _class_names(root / other), root / other)
    splits: tuple[Split, ...] = ("train", *others)
    return classes, {split: _listing(root / split, classes) for split in splits}


_OTHERS: tuple[Split, ...] = ("val", "test")


def _class_names(folder: Path) -> tuple[str, ...]:
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    names = tuple(sorted(entry.name for entry in entries if entry.is_dir()))
    if not names:
        content = "files but no class folders" if entries else "nothing"
        raise DataError(f"{folder} holds {content}", fix=f"expected {LAYOUT}")
    if len(names) < 2:
        raise DataError(f"{folder} holds one class only: {names[0]}", fix="give at least 2 classes")
    return names


def _require_same_classes(wanted: tuple[str, ...], got: tuple[str, ...], folder: Path) -> None:
    missing, extra = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))
    if missing or extra:
        parts = [f"lacks {', '.join(missing[:5])}"] if missing else []
        parts += [f"adds {', '.join(extra[:5])}"] if extra else []
        raise DataError(
            f"the classes of {folder} differ from those of train/: it {' and '.join(parts)}",
            fix="give every split the same class folders",
        )


def _listing(folder: Path, classes: tuple[str, ...]) -> Listing:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = _image_files(folder / name)
        paths += images
        labels += [label] * len(images)
    return Listing(tuple(paths), np.array(labels, dtype=np.int64))


def _image_files(folder: Path) -> list[Path]:
    files = [
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not name.startswith(".")
    ]
    images = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    if not images:
        content = f"{len(files)} files, none an image" if files else "no images"
        raise DataError(
            f"the class folder {folder} holds {content}",
            fix=f"add images ({', '.join(sorted(SUFFIXES))}) or remove the class everywhere",
        )
    return images


def _with_val(found: Mapping[Split, Listing]) -> dict[Split, Listing]:
    """With one of val/ and test/ that one is the test split, and val is held out of train."""
    if "val" in found and "test" in found:
        return dict(found)
    train, val = hold_out(found["train"].labels)
    test = found["test"] if "test" in found else found["val"]
    return {"train": found["train"].part(train), "val": found["train"].part(val), "test": test}


def _digest(root: Path, found: Mapping[Split, Listing]) -> str:
    """SHA-256 over relative names, sizes and labels: cheap, and changes with any added file."""
    digest = hashlib.sha256()
    for listing in found.values():
        for path, label in zip(listing.paths, listing.labels.tolist(), strict=True):
            line = f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0{label}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
