"""Engine files: written whole or not at all, and sealed: nothing in them is parsed unverified.

A sealed file is 8 bytes magic, uint64 length and SHA-256 of the rest; then uint32 length of the
JSON head, the head, and the parts that it names, one after the other.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from targets.errors import EngineError

REBUILD = "build it again here: pipeline build"

_MAGIC = b"WGATES1\n"
_PREFIX = struct.Struct("<8sQ32s")  # magic, length and SHA-256 of the body
_HEAD_LENGTH = struct.Struct("<I")

HeaderT = TypeVar("HeaderT")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; moved there at the end, so that nobody sees half of it."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, *parts: bytes) -> None:
    """Write `path` in one step."""
    with replacing(path) as partial, partial.open("wb") as file:
        file.writelines(parts)


def write_sealed(out: Path, header: Any, parts: Mapping[str, bytes]) -> None:
    """Write a sealed file; `header` is a dataclass of texts, numbers and tuples of them."""
    sizes = [(name, len(part)) for name, part in parts.items()]
    head = json.dumps({"header": asdict(header), "parts": sizes}).encode()
    body = (_HEAD_LENGTH.pack(len(head)), head, *parts.values())
    digest = hashlib.sha256()
    for part in body:
        digest.update(part)
    prefix = _PREFIX.pack(_MAGIC, sum(map(len, body)), digest.digest())
    write_whole(out, prefix, *body)


def read_sealed(engine: Path, kind: type[HeaderT]) -> tuple[HeaderT, dict[str, bytes]]:
    """Header and parts of a sealed file; EngineError unless its length and SHA-256 agree."""
    body = _verified(engine)
    start = _HEAD_LENGTH.size + _HEAD_LENGTH.unpack_from(body)[0]
    head = json.loads(body[_HEAD_LENGTH.size : start])
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if names != set(head["header"]):
        wrong = ", ".join(sorted(names.symmetric_difference(head["header"])))
        raise EngineError(f"{engine} is foreign, or of another version: {wrong}", fix=REBUILD)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in head["header"].items()}
    parts = {}
    for name, size in head["parts"]:
        parts[name] = body[start : start + size]
        start += size
    return kind(**values), parts


def _verified(engine: Path) -> bytes:
    """What follows the prefix of a sealed file, once its hash agreed."""
    try:
        content = engine.read_bytes()
    except OSError as error:
        raise EngineError(f"cannot read {engine}: {error.strerror}", fix=REBUILD) from error
    if not content.startswith(_MAGIC[: max(1, len(content))]):
        raise EngineError(f"{engine} is foreign: no sealed engine file", fix=REBUILD)
    if len(content) < _PREFIX.size:
        raise EngineError(f"{engine} is cut short: {len(content)} bytes", fix=REBUILD)
    _, length, digest = _PREFIX.unpack_from(content)
    body = content[_PREFIX.size :]
    if len(body) < length:
        raise EngineError(
            f"{engine} is cut short: {len(body)} of {length} bytes are left", fix=REBUILD
        )
    if len(body) != length or hashlib.sha256(body).digest() != digest:
        raise EngineError(f"{engine} is damaged: its SHA-256 differs", fix=REBUILD)
    return body
