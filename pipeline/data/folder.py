"""`imagefolder:DIR`: DIR/train/<class>/* and DIR/test/<class>/*, DIR/val/<class>/* or both."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline.data.base import DataCard, ImageData, Split
from pipeline.data.decode import SUFFIXES
from pipeline.data.listing import Listing, read_images
from pipeline.data.reading import IMAGENET_MEAN, IMAGENET_STD, ReadOptions
from pipeline.errors import DataError

LAYOUT = "DIR/train/<class>/*.jpg and DIR/test/<class>/*.jpg (val/ instead of or beside test/)"


def load_folder(root: Path, options: ReadOptions) -> ImageData:
    """Read, check and split the folder; small sets are decoded now, large ones stream."""
    classes, found = _found(root)
    digest = _digest(root, found)
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
    return read_images(root, found, card=card, options=options)


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
    files = [Path(parent, name) for parent, name in _walked(folder) if not name.startswith(".")]
    images = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    if not images:
        content = f"{len(files)} files, none an image" if files else "no images"
        raise DataError(
            f"the class folder {folder} holds {content}",
            fix=f"add images ({', '.join(sorted(SUFFIXES))}) or remove the class everywhere",
        )
    return images


def _walked(folder: Path) -> Iterator[tuple[str, str]]:
    """(folder, name) of every file below, through links too, but each folder once."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        yield from ((parent, name) for name in names)


def _digest(root: Path, found: Mapping[Split, Listing]) -> str:
    """SHA-256 over relative names, sizes and labels: cheap, and changes with any added file."""
    digest = hashlib.sha256()
    for listing in found.values():
        for path, label in zip(listing.paths, listing.labels.tolist(), strict=True):
            assert isinstance(path, Path)
            found_at = path.stat()
            if not stat.S_ISREG(found_at.st_mode):  # reading from a pipe would wait for ever
                raise DataError(f"{path} is no regular file", fix="remove it")
            line = f"{path.relative_to(root).as_posix()}\0{found_at.st_size}\0{label}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
