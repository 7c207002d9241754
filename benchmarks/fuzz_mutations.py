"""Seeded damage: to bytes, to JSON documents, and to folders."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Document = Any
FileMutation = Callable[[random.Random, bytes], bytes]
NAMES = (
    "../outside", "../../outside", "/tmp/outside", "a/../../outside", "C:\\outside", "..\\outside",
    "\u202egnp.exe", "e\u0301", "\u0000", "a" * 5000, "nul", "MANIFEST.JSON", "triton/", ".", "",
    "\ud800", "manifest.sig", "triton/tiny/../../../outside", "~/outside", "file:///outside",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, 2**31, 2**63, 2**64, 10**400, -(10**400), "",
    "x", "1", "\u0000", "\u202e", "\ud800", "犬" * 2000, "A" * 200_000, [], {}, [[]], [None],
    {"a": 1}, {"__class__": "os.system"}, ["a"] * 5000, list(range(3000)), *NAMES,
)  # fmt: skip
RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "1" * 5000,
    "[" * 3000,
    '{"a":' * 3000,
    "0x10",
    "'x'",
)


class Payload:
    """What would write a file if any reader unpickled it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


PICKLE = pickle.dumps(Payload())

# bytes ------------------------------------------------------------------------------------


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def extend(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((b"\0", b" ", b"\n", rng.randbytes(64), data))


def overwrite(rng: random.Random, data: bytes) -> bytes:
    start, length = rng.randrange(len(data) + 1), rng.choice((1, 4, 8, 64))
    filler = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))
    return data[:start] + filler + data[start + length :]


def cut_out(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 2, 16, 256)) :]


def repeat_piece(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.choice((1, 16, 256))]
    return data[:start] + piece * rng.choice((2, 3, 100)) + data[start + len(piece) :]


def replace_all(rng: random.Random, data: bytes) -> bytes:
    return rng.choice((b"", PICKLE, b"PK\x03\x04", b"{}", b"[]", b"null", rng.randbytes(len(data))))


BYTES: tuple[FileMutation, ...] = (
    flip_bits, truncate, extend, overwrite, cut_out, repeat_piece, replace_all,
)  # fmt: skip

# JSON -------------------------------------------------------------------------------------


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """One place of the document gets another value, key, or text that is no JSON."""
    document = json.loads(data)
    places = list(_places(document))
    holder, key = rng.choice(places)
    change = rng.randrange(6)
    if change <= 2:
        holder[key] = rng.choice(VALUES)
    elif change == 3:
        del holder[key]
    elif change == 4:
        _add(rng, holder, key)
    else:
        return _with_raw_text(rng, document, holder, key)
    return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _places(node: Document) -> list[tuple[Any, Any]]:
    """Every (container, key) of the document."""
    keys = list(node) if isinstance(node, dict) else range(len(node))
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found.append((node, key))
        if isinstance(node[key], (dict, list)):
            found += _places(node[key])
    return found


def _add(rng: random.Random, holder: Any, key: Any) -> None:
    """A value under a name that may lead out of the folder, or once more."""
    if isinstance(holder, dict):
        holder[rng.choice(NAMES)] = holder[key]
    else:
        holder.insert(rng.randrange(len(holder) + 1), holder[key])


def _with_raw_text(rng: random.Random, document: Document, holder: Any, key: Any) -> bytes:
    """What json.dumps does not write: NaN, huge numbers, depth, a key twice."""
    marker = "\ue000raw\ue000"
    if isinstance(holder, dict) and rng.random() < 0.3:
        twice = json.dumps({key: holder[key]})[1:-1]
        holder[marker] = 0
        text = json.dumps(document, ensure_ascii=False)
        return text.replace(f'"{marker}": 0', twice).encode("utf-8", "surrogatepass")
    holder[key] = marker
    text = json.dumps(document, ensure_ascii=False)
    return text.replace(f'"{marker}"', rng.choice(RAW)).encode("utf-8", "surrogatepass")


# folders ----------------------------------------------------------------------------------


def _pick(rng: random.Random, folder: Path) -> Path:
    return rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))


def swap_files(rng: random.Random, folder: Path) -> None:
    one, other = _pick(rng, folder), _pick(rng, folder)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def delete(rng: random.Random, folder: Path) -> None:
    _pick(rng, folder).unlink()


def rename(rng: random.Random, folder: Path) -> None:
    path = _pick(rng, folder)
    path.rename(path.with_name(rng.choice(("x", path.name.upper(), f"{path.name} ", "é"))))


def add_file(rng: random.Random, folder: Path) -> None:
    name = rng.choice(("extra", ".hidden", "triton/extra", "new/extra", "manifest.sig", "x.py"))
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rng.choice((b"", PICKLE, b"import os", bytes(64))))


def add_folder(rng: random.Random, folder: Path) -> None:
    depth = rng.choice((1, 2, 40))
    (folder / "/".join(rng.choice(("d", "triton")) for _ in range(depth)) / "e").mkdir(
        parents=True, exist_ok=True
    )


def to_link(rng: random.Random, folder: Path) -> None:
    path = _pick(rng, folder)
    content = path.read_bytes()
    path.unlink()
    same = folder.parent / "elsewhere"
    same.write_bytes(content)
    path.symlink_to(rng.choice((same, Path("/etc/hostname"), Path("/dev/zero"), path)))


def to_special(rng: random.Random, folder: Path) -> None:
    path = _pick(rng, folder)
    path.unlink()
    path.mkdir() if rng.random() < 0.5 else os.mkfifo(path)


def to_huge(rng: random.Random, folder: Path) -> None:
    """A sparse file of a tebibyte."""
    os.truncate(_pick(rng, folder), 1 << 40)


def touch(rng: random.Random, folder: Path) -> None:
    """Nothing that a bundle means: other times, other rights."""
    path = _pick(rng, folder)
    os.utime(path, (0, 0))
    path.chmod(rng.choice((0o444, 0o777)))


FOLDER: tuple[Callable[[random.Random, Path], None], ...] = (
    swap_files, delete, rename, add_file, add_folder, to_link, to_special, to_huge, touch,
)  # fmt: skip
