"""What the file of a built OpenVINO engine holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from targets.files import read_sealed, write_sealed


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
        """Write it in one step."""
        parts = {"blob": self.blob, "xml": self.xml, "weights": self.weights}
        write_sealed(out, self.stamp, parts)

    @classmethod
    def read(cls, engine: Path) -> EngineFile:
        """Parts of an engine file; EngineError unless its length and SHA-256 agree."""
        stamp, parts = read_sealed(engine, Stamp)
        return cls(stamp, **parts)
