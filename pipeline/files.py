"""Files written whole or not at all, their digests, and the disk's faults in one line."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pipeline.errors import DeployError


def write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename: nobody ever sees half a file."""
    with _named_when_whole(path) as temporary:
        temporary.write_bytes(data)


def copy_atomically(source: Path, path: Path) -> None:
    """Copy likewise: a copy that was cut short would be taken for the whole file."""
    with _named_when_whole(path) as temporary:
        shutil.copyfile(source, temporary)


@contextmanager
def _named_when_whole(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_faults_told(f"cannot write {path.name}"):
        try:
            yield temporary
            temporary.replace(path)
        except OSError:
            with suppress(OSError):  # on a read-only disk even this fails
                temporary.unlink(missing_ok=True)
            raise


def remove_unfinished(folder: Path, *, below: bool = True) -> None:
    """Remove what processes that were killed left; nobody else may be writing there."""
    for path in list(folder.rglob(".*") if below else folder.glob(".*")):
        if _UNFINISHED.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line, one writer at a time; what an earlier one left unfinished is ended first."""
    with path.open("ab+") as file:
        # another's line that is just being written looks unfinished
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = f"\n{line}"
        file.write(f"{line}\n".encode())


@contextmanager
def disk_faults_told(what: str, where: Path | None = None) -> Iterator[None]:
    """A full disk, a missing right, a damaged file: one line with its fix, not a traceback.

    `where` is named when the error itself names no file, as that of a failed write.
    """
    try:
        yield
    except OSError as error:
        name = error.filename2 or error.filename or where  # of two, the second is written to
        raise DeployError(
            f"{what}: {error.strerror or error}{f' ({name})' if name else ''}",
            fix=fix_of(error),
        ) from error
    except SafetensorError as error:  # its writer has no OSError of its own
        raise DeployError(
            f"{what}: {error}", fix="free the disk, or remove the damaged file, and run it again"
        ) from error


def refuse_taken(*paths: Path) -> None:
    """DeployError if one of these names is in use."""
    for path in paths:
        if path.exists():
            raise DeployError(f"{path} is there already", fix="give another name, or remove it")


def fix_of(error: OSError) -> str:
    """What to do about a fault of the disk."""
    return _FIXES.get(error.errno or 0, "mend that and run the same command again")


# as `write_atomically`, `replace_folder` and targets.files.replacing name them, with their pid
_UNFINISHED = re.compile(r"\..+\.\d+(\.partial(\..+)?)?")
_FIXES = {
    errno.ENOSPC: "free the disk and run the same command again",
    errno.EDQUOT: "free some of your quota and run the same command again",
    errno.EACCES: "make it writable for you, or use another folder",
    errno.EPERM: "make it writable for you, or use another folder",
    errno.EROFS: "use a folder on a disk that can be written",
    errno.EEXIST: "give a folder, not a file",
    errno.ENOTDIR: "give a folder, not a file",
}


def replace_folder(folder: Path, final: Path) -> None:
    """Give a folder its final name; what had it is there whole, or under a name of its own."""
    if not final.exists():
        folder.rename(final)
        return
    old = final.with_name(f".{final.name}.{os.getpid()}")
    final.rename(old)
    folder.rename(final)
    shutil.rmtree(old)


def json_in(path: Path) -> Any:
    """What a JSON file holds; None if it is not there or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def named_file(value: Any) -> Path | None:
    """The file that an option names, as a path or as `file.py:factory`; None if there is none."""
    if isinstance(value, str) and ".py:" in value:
        value = Path(value.rpartition(":")[0])
    return value if isinstance(value, Path) and value.is_file() else None


def digests(folder: Path, *, without: str) -> dict[str, str]:
    """SHA-256 of every file in a folder but those called `without`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != without)
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def digest(path: Path) -> str:
    with path.open("rb") as file:
        found: str = hashlib.file_digest(file, "sha256").hexdigest()
    return found
