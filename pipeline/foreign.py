"""Reading a folder of unknown origin: no links, no special files, no more than is expected."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pipeline.manifest import FileRecord, refuse, shown

MAX_ENTRIES = 4096  # files and folders; a bundle of ours has some twenty
MAX_DEPTH = 16
_CHUNK = 1 << 20
# a file that became a link since it was listed must not be followed, a FIFO not waited for
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def found_in(folder: Path) -> tuple[set[str], set[str]]:
    """Every file and every folder under `folder`, as relative POSIX paths; BundleError for all
    that is neither."""
    if not folder.is_dir():
        refuse(f"{folder} is no folder")
    files: set[str] = set()
    folders: set[str] = set()
    unseen = [folder]
    while unseen:
        for entry in _entries(unseen.pop()):
            relative = Path(entry.path).relative_to(folder).as_posix()
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                unseen.append(Path(entry.path))
                folders.add(relative)
            elif stat.S_ISREG(mode):
                files.add(relative)
            else:
                refuse(f"{shown(relative)} is a link or a special file")
            if len(files) + len(folders) > MAX_ENTRIES or relative.count("/") >= MAX_DEPTH:
                refuse(f"the folder holds more than {MAX_ENTRIES} files, or is too deep")
    return files, folders


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from entries


def refuse_empty(folders: set[str], files: set[str]) -> None:
    """A folder without files is not in the manifest, but may mean something to a server."""
    used = {parent.as_posix() for name in files for parent in PurePosixPath(name).parents}
    if empty := sorted(folders - used):
        refuse(f"the folder {shown(empty[0])} is empty")


def read_at_most(path: Path, limit: int) -> bytes:
    """The content of a plain file, of at most `limit` bytes; BundleError if it has more."""
    with _opened(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        refuse(f"{path.name} is larger than {limit} bytes")
    return data


def read_listed(path: Path, name: str, record: FileRecord) -> bytes:
    """The content of a listed file, whose size and SHA-256 are those of its record."""
    with _opened(path) as file:
        data = file.read(record.bytes + 1)
    if FileRecord(hashlib.sha256(data).hexdigest(), len(data)) != record:
        refuse(f"{shown(name)} has changed: its SHA-256 differs from the manifest's")
    return data


def check_file(path: Path, name: str, record: FileRecord) -> None:
    """BundleError unless the file has the size and the SHA-256 of its record."""
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size  # first: it is free, and names a cut download
        if size != record.bytes:
            refuse(f"{shown(name)} has {size} bytes, the manifest says {record.bytes}")
        if _digest(file, size) != record.sha256:
            refuse(f"{shown(name)} has changed: its SHA-256 differs from the manifest's")


def record_of(path: Path) -> FileRecord:
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        return FileRecord(sha256=_digest(file, size), bytes=size)


def _digest(file: BinaryIO, size: int) -> str:
    """SHA-256 of `size` bytes; a file that grows meanwhile does not hold us."""
    digest, left = hashlib.sha256(), size
    while left > 0 and (chunk := file.read(min(_CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with os.fdopen(os.open(path, _FLAGS), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            refuse(f"{shown(path.name)} is a link or a special file")
        yield file
