"""The file of a built TensorRT engine: a header that says what it is for, then the bare plan.

Layout: 8 bytes magic, uint32 length of the header, SHA-256 of the header, the header (JSON), plan.
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

_MAGIC = b"WGPLAN1\n"
_PREFIX = struct.Struct("<8sI32s")  # magic, length and SHA-256 of the header


@dataclass(frozen=True)
class PlanHeader:
    """What a plan was built from and for."""

    target: str  # such as "trt-rtx-fp16"
    runtime: str  # such as "tensorrt_rtx 1.7.1.116"; plans load in the very same version only
    compute_capabilities: tuple[str, ...]  # asked for, such as "sm89"; (): the builder's default
    device: str  # that it was built on; "" where the builder needs none
    batch: int  # images per call
    onnx_sha256: str  # of the fp32 model that was given
    plan_sha256: str

    def to_json(self) -> dict[str, Any]:
        """A dict that `json.dumps` accepts."""
        return {**asdict(self), "compute_capabilities": list(self.compute_capabilities)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> PlanHeader:
        """The inverse of `to_json`; ValueError if the record is anything else."""
        names = {field.name for field in fields(cls)}
        if names != set(record):
            wrong = ", ".join(sorted(names.symmetric_difference(record)))
            raise ValueError(f"missing or unknown fields {wrong}")
        values = dict(record)
        values["compute_capabilities"] = tuple(values["compute_capabilities"])
        return cls(**values)


def sha256(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def write_plan(out: Path, header: PlanHeader, plan: bytes) -> None:
    """Write an engine file; whoever reads it sees the old one or the new one, whole."""
    encoded = json.dumps(header.to_json(), sort_keys=True).encode()
    prefix = _PREFIX.pack(_MAGIC, len(encoded), hashlib.sha256(encoded).digest())
    write_whole(out, prefix + encoded, plan)


def read_plan(engine: Path) -> tuple[PlanHeader, bytes]:
    """Header and bare plan of an engine file, or EngineError unless both hashes agree."""
    try:
        content = engine.read_bytes()
    except OSError as error:
        raise EngineError(f"cannot read {engine}: {error.strerror}", fix=REBUILD) from error
    if len(content) < _PREFIX.size or not content.startswith(_MAGIC):
        raise EngineError(
            f"{engine} is no engine of a TensorRT target: foreign or cut short", fix=REBUILD
        )
    _, length, digest = _PREFIX.unpack_from(content)
    encoded = content[_PREFIX.size : _PREFIX.size + length]
    if hashlib.sha256(encoded).digest() != digest:
        raise EngineError(f"{engine} is damaged or cut short in its header", fix=REBUILD)
    try:
        header = PlanHeader.from_json(json.loads(encoded))
    except ValueError as error:
        raise EngineError(
            f"{engine} has a header of another version: {error}", fix=REBUILD
        ) from error
    plan = content[_PREFIX.size + length :]
    if sha256(plan) != header.plan_sha256:
        raise EngineError(
            f"{engine} is damaged or cut short: its plan has another SHA-256", fix=REBUILD
        )
    return header, plan


def bare(engine: Path) -> bytes:
    """The plan as TensorRT and Triton load it, from an engine file whose hashes agree."""
    return read_plan(engine)[1]


def write_whole(path: Path, *parts: bytes) -> None:
    """Write `path` beside its place and move it there, so that nobody sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(parts)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
