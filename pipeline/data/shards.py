"""`webdataset:SHARDS`: plain tar files with pairs of members such as 0001.jpg and 0001.cls.

The shards are indexed once, by their headers, and then read at random like files: every epoch is
one shuffle of all images, the same with any number of workers, processes and restarts. Nothing is
unpacked onto the disk, and of what lies beside images only `.cls`, a whole number, is read.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.base import DataCard, ImageData, Split
from pipeline.data.decode import SUFFIXES, in_threads
from pipeline.data.listing import Listing, read_images
from pipeline.data.members import Members
from pipeline.data.reading import IMAGENET_MEAN, IMAGENET_STD, ReadOptions
from pipeline.errors import DataError

LABEL = ".cls"
LABEL_BYTES = 32  # a whole number in digits
CLASSES_FILE = "classes.txt"  # beside the shards, a name a line
FORM = (
    "give a folder with names such as train-0000.tar and val-0000.tar, or a pattern with {split}, "
    "such as DIR/imagenet-{split}-{0000..1023}.tar"
)
# what a split is called in the names of shards
NAMES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}


@dataclass(frozen=True)
class Sample:
    """One image of a shard: where its bytes are, and its class."""

    key: str
    offset: int
    size: int
    suffix: str
    label: int


def load_shards(place: Path, options: ReadOptions) -> ImageData:
    """Index, check and split the shards; small sets are decoded now, large ones stream."""
    shards = _shards(str(place))
    root = Path(*_common_parts([path for paths in shards.values() for path in paths]))
    digest = hashlib.sha256()
    found = {split: _listing(root, paths, digest) for split, paths in shards.items()}
    card = DataCard(
        name=f"webdataset:{root.name}",
        classes=_classes(root, found),
        image_shape=(3, 0, 0),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        counts={},
        skipped=(),
        digest=digest.hexdigest(),
        augment=options.augmented(),
    )
    return read_images(root, found, card=card, options=options)


def expanded(pattern: str) -> list[str]:
    """Braces spelt out, as a shell does it: {00..12} and {a,b}."""
    found = re.search(r"\{(\w+)\.\.(\w+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    first, last, names = found.groups()
    if names is not None:
        middles = names.split(",")
    elif first.isdigit() and last.isdigit():
        middles = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        raise DataError(f"{found.group()} in {pattern!r} is no range of numbers", fix=FORM)
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [text for middle in middles for text in expanded(head + middle + tail)]


def _shards(place: str) -> dict[Split, list[Path]]:
    """The shards of each split, sorted; train and one more at least."""
    if Path(place).is_dir():
        escaped = glob.escape(place)
        patterns = [f"{escaped}/*{{split}}*.tar", f"{escaped}/{{split}}/*.tar"]
    elif "{split}" in place:
        patterns = [place]
    else:
        raise DataError(f"{place} is no folder, and has no {{split}} in it", fix=FORM)
    shards = {split: _first_found(patterns, names) for split, names in NAMES.items()}
    found = {split: paths for split, paths in shards.items() if paths}
    if "train" not in found or len(found) == 1:
        missing = "train" if "train" not in found else "val or test"
        raise DataError(f"{place} has no shards for {missing}", fix=FORM)
    for (one, paths), (other, others) in itertools.combinations(found.items(), 2):
        if both := set(paths) & set(others):
            raise DataError(
                f"{min(both).name} is named like shards of {one} and of {other}",
                fix="give a pattern that tells them apart, such as 'DIR/name-{split}-*.tar'",
            )
    return found


def _first_found(patterns: Sequence[str], names: Sequence[str]) -> list[Path]:
    for pattern, name in itertools.product(patterns, names):
        texts = expanded(pattern.replace("{split}", name))
        paths = sorted({Path(path) for text in texts for path in glob.glob(text)})  # noqa: PTH207
        if paths and (absent := [text for text in texts if not glob.glob(text)]):  # noqa: PTH207
            raise DataError(f"there is no {absent[0]}", fix="fetch it, or narrow the pattern")
        if paths:
            return paths
    return []


def _common_parts(paths: Sequence[Path]) -> Iterator[str]:
    for parts in zip(*(path.resolve().parent.parts for path in paths), strict=False):
        if len(set(parts)) > 1:
            return
        yield parts[0]


def _listing(root: Path, shards: list[Path], digest: hashlib._Hash) -> Listing:
    shards = [path.resolve() for path in shards]
    indexed = in_threads(samples_of, shards, None)
    for path, samples in zip(shards, indexed, strict=True):
        name = path.relative_to(root).as_posix()
        for one in samples:
            line = f"{name}\0{one.key}\0{one.size}\0{one.label}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    every = [one for samples in indexed for one in samples]
    numbers = np.repeat(np.arange(len(shards), dtype=np.int32), [len(part) for part in indexed])
    spans = np.array([(one.offset, one.size) for one in every], dtype=np.int64).reshape(-1, 2)
    members = Members(shards, numbers, spans, np.array([one.suffix for one in every]))
    return Listing(members, np.array([one.label for one in every], dtype=np.int64))


def samples_of(shard: Path) -> list[Sample]:
    """All images of a shard, in its order; DataError if it is damaged or not in this form."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:  # without compression: members are read at random
            for member in tar:
                key, suffix = _key_and_suffix(member.name)
                if suffix in SUFFIXES or suffix == LABEL:
                    _require_plain(shard, member)
                if suffix in SUFFIXES:
                    images[key] = member
                elif suffix == LABEL:
                    labels[key] = _label(shard, tar, member)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{shard} is no tar file, or damaged, or compressed: {error}",
            fix="fetch it again; unpack .tar.gz to .tar",
        ) from error
    if odd := sorted(images.keys() ^ labels.keys()):
        lacks = LABEL if odd[0] in images else "image"
        raise DataError(
            f"{shard}: {odd[0]!r} has no {lacks}", fix=f"pair 0001.jpg with 0001{LABEL}"
        )
    if not images:
        raise DataError(f"{shard} holds no images", fix=f"fill it with pairs of .jpg and {LABEL}")
    return [
        Sample(key, member.offset_data, member.size, _key_and_suffix(member.name)[1], labels[key])
        for key, member in images.items()
    ]


def _key_and_suffix(name: str) -> tuple[str, str]:
    """A sample's key is all up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _require_plain(shard: Path, member: tarfile.TarInfo) -> None:
    if not member.isreg() or member.issparse():
        raise DataError(
            f"{shard}: {member.name!r} is a link or the like, not a file",
            fix="write the images themselves into the shard",
        )


def _label(shard: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    text = file.read(LABEL_BYTES + 1).strip() if file is not None else b""
    if not text.isdigit() or len(text) > LABEL_BYTES or int(text) >= 2**31:
        raise DataError(
            f"{shard}: {member.name!r} holds no class, but {text[:20]!r}",
            fix=f"write a whole number from 0 on into each {LABEL}",
        )
    return int(text)


def _classes(root: Path, found: Mapping[Split, Listing]) -> tuple[str, ...]:
    """Names by `classes.txt`, or numbers; every class has training images."""
    seen = np.unique(found["train"].labels)
    named = root / CLASSES_FILE
    if named.exists():
        names = tuple(named.read_text(encoding="utf-8").split("\n"))
        names = names[:-1] if names[-1] == "" else names
    else:
        names = tuple(str(label) for label in range(int(seen[-1]) + 1))
    if len(names) < 2 or len(seen) != len(names):
        raise DataError(
            f"train has images of {len(seen)} classes, where there are {len(names)}",
            fix=f"number the classes from 0 without gaps, 2 at least; see {CLASSES_FILE}",
        )
    for split, listing in found.items():
        if int(listing.labels.max()) >= len(names):
            raise DataError(
                f"{split} has class {listing.labels.max()}, train has 0 to {len(names) - 1}",
                fix="give every split the same classes",
            )
    return names
