"""The file of a built OpenVINO engine: a stamp that says what it fits, then its parts.

Layout: 8 bytes magic, uint64 length and SHA-256 of all that follows; uint32 length of the stamp,
the stamp (JSON), the compiled blob, and the typed model as `model.xml` and `model.bin`.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from targets.errors import EngineError

REBUILD = "build it again here: pipeline build"

_MAGIC = b"WGOVBLB1"
_PREFIX = struct.Struct("<8sQ32s")  # magic, length and SHA-256 of the body
_STAMP_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Stamp:
    """What a compiled blob was built by and for; it loads only where all of it fits."""

    target: str  # such as "openvino-cpu"
    runtime: str  # OpenVINO's full version: another one may lay a blob out differently
    compute: str  # "f32" or "f16"; a blob does not remember it
    isa: tuple[str, ...]  # instruction sets that the blob was compiled for


@dataclass(frozen=True)
class EngineFile:
    """An engine file whose hash agreed."""

    stamp: Stamp
    blob: bytes  # what `export_model` gave
    xml: bytes  # the same network before it was compiled, as OpenVINO's intermediate representation
    weights: bytes  # of `xml`

    def write(self, out: Path) -> None:
        """Write it beside its place and move it there, so that nobody sees half of it."""
        sizes = {name: len(getattr(self, name)) for name in _PARTS}
        header = json.dumps({"stamp": asdict(self.stamp), "sizes": sizes}).encode()
        parts = (
            _STAMP_LENGTH.pack(len(header)),
            header,
            *(getattr(self, name) for name in _PARTS),
        )
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        prefix = _PREFIX.pack(_MAGIC, sum(map(len, parts)), digest.digest())
        partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                file.writelines((prefix, *parts))
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def read(cls, engine: Path) -> EngineFile:
        """Parts of an engine file; EngineError unless its length and SHA-256 agree."""
        body = _verified(engine)
        start = _STAMP_LENGTH.size + _STAMP_LENGTH.unpack_from(body)[0]
        try:
            record = json.loads(body[_STAMP_LENGTH.size : start])
            stamp, sizes = _stamp(record["stamp"]), [int(record["sizes"][name]) for name in _PARTS]
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"{engine} has a stamp of another version: {error}", fix=REBUILD
            ) from error
        parts: list[bytes] = []
        for size in sizes:
            parts.append(body[start : start + size])
            start += size
        return cls(stamp, *parts)


_PARTS = ("blob", "xml", "weights")


def _stamp(record: Mapping[str, Any]) -> Stamp:
    if set(record) != {item.name for item in fields(Stamp)}:
        raise ValueError(f"it has the fields {sorted(record)}")
    return Stamp(**{**record, "isa": tuple(record["isa"])})


def _verified(engine: Path) -> bytes:
    """What follows the prefix of an engine file, once its hash agreed."""
    try:
        content = engine.read_bytes()
    except OSError as error:
        raise EngineError(f"cannot read {engine}: {error.strerror}", fix=REBUILD) from error
    if not content.startswith(_MAGIC[: max(1, len(content))]):
        raise EngineError(f"{engine} is foreign: no engine of an OpenVINO target", fix=REBUILD)
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
