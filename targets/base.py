"""`Target` and `Engine`: what every runtime adapter provides, and the values they exchange."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from targets.errors import EngineError
from targets.fingerprint import Fingerprint, allowed_cpus
from targets.timing import Samples, time_calls

Precision = Literal["fp32", "fp16", "int8"]
Images = NDArray[np.float32]  # (N, C, H, W), already normalised
Logits = NDArray[np.float32]  # (N, classes)


@dataclass(frozen=True)
class TargetOptions:
    """What a user may choose about a target; every field is part of its fingerprint."""

    batch: int = 1  # images per call
    threads: int | None = None  # None: as many as the affinity mask allows

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")

    @property
    def thread_count(self) -> int:
        """The threads to use: as asked, else one for each CPU of the affinity mask."""
        return len(allowed_cpus()) if self.threads is None else self.threads


class Engine(ABC):
    """A loaded engine, used in a `with` block; leaving it frees its memory."""

    input_shape: tuple[int, int, int, int]  # (N, C, H, W), static

    @abstractmethod
    def infer_batch(self, images: Images) -> Logits:
        """Run exactly one batch, shaped `input_shape`, and return its (N, classes) logits."""

    def infer(self, images: Images) -> Logits:
        """Run (n, C, H, W) images, any n >= 1, and return (n, classes) logits."""
        if images.ndim != 4 or images.shape[1:] != self.input_shape[1:] or not len(images):
            wanted = ", ".join(map(str, self.input_shape[1:]))
            raise EngineError(f"the engine takes images (n, {wanted}), not {images.shape}")
        batch = self.input_shape[0]
        parts = [
            self.infer_batch(_padded(images[start : start + batch], batch))
            for start in range(0, len(images), batch)
        ]
        return np.concatenate(parts)[: len(images)]

    @abstractmethod
    def call(self) -> None:
        """Run one batch on resident inputs and wait until the result is there."""

    def time_ms(self, n: int) -> Samples:
        """Time `n` successive calls, each with its evidence."""
        return time_calls(self.call, n)

    @abstractmethod
    def close(self) -> None:
        """Free everything; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Target(ABC):
    """One runtime at one precision: builds engines from ONNX, loads them, and says what it is."""

    name: str  # key in TARGETS and value of --target
    precision: Precision
    engine_suffix: str  # of the built file, such as ".onnx" or ".plan"
    channel_multiple: int  # widths that are multiples of this are the ones worth measuring
    channel_block: int  # the runtime computes channels in blocks of this many

    def __init__(self, options: TargetOptions) -> None:
        self.options = options

    @abstractmethod
    def is_available(self) -> tuple[str, ...]:
        """Every reason why this target cannot run here; empty when it can."""

    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Device, versions and settings: latencies compare only when these agree."""

    @abstractmethod
    def build(self, onnx: bytes | Path, out: Path, int8_batches: Iterable[Images] = ()) -> Path:
        """Build an engine file at `out` from a static-shape ONNX model; BuildError if refused."""

    @abstractmethod
    def load(self, engine: Path) -> Engine:
        """Load a built engine file; EngineError if it is damaged or foreign."""


def _padded(images: Images, batch: int) -> Images:
    """(n, C, H, W) images filled up to (batch, C, H, W) with zeros, contiguous float32."""
    whole = np.zeros((batch, *images.shape[1:]), np.float32)
    whole[: len(images)] = images
    return whole
