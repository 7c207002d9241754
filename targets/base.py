"""`Target` and `Engine`: what every runtime adapter provides, and the values they exchange."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from targets.errors import EngineError, TargetUnavailableError
from targets.fingerprint import Fingerprint, allowed_cpus
from targets.timing import Samples, time_calls

Precision = Literal["fp32", "fp16", "int8"]
Images = NDArray[np.float32]  # (N, C, H, W), already normalised
Logits = NDArray[np.float32]  # (N, classes)
Progress = Callable[[str, int, int], bool]  # phase, step, steps; False: stop building


@dataclass(frozen=True)
class TargetOptions:
    """What a user may choose about a target; every field is part of its fingerprint."""

    batch: int = 1  # images per call
    threads: int | None = None  # None: as many as the affinity mask allows
    spinning: bool = True  # idle threads of the runtime wait busily, not asleep
    device_time: bool = False  # latency is the device's own time, not what the caller waits
    cuda_graph: bool = False  # replay the network as one captured CUDA graph
    quantizer: str = ""  # who makes the int8 form; "": whichever the target prefers
    compute_capabilities: tuple[str, ...] = ()  # GPUs to build for, such as "sm89"; (): the default

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")
        # JSON has lists only
        object.__setattr__(self, "compute_capabilities", tuple(self.compute_capabilities))

    @property
    def thread_count(self) -> int:
        """The threads to use: as asked, else one for each CPU of the affinity mask."""
        return len(allowed_cpus()) if self.threads is None else self.threads

    def chosen(self) -> frozenset[str]:
        """Names of the options that are not at their default."""
        default = TargetOptions()
        names = (item.name for item in fields(self))
        return frozenset(name for name in names if getattr(self, name) != getattr(default, name))


@dataclass(frozen=True)
class BuildRecord:
    """A built engine, and what the build had to do for it."""

    engine: Path
    kept_fp32: tuple[str, ...] = ()  # nodes that a lower precision would have harmed
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON: converter, layers, seconds, ...


@dataclass(frozen=True)
class TritonServing:
    """How NVIDIA's Triton server runs the engines of a target."""

    backend: str
    on_gpu: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)  # of the backend
    shared: Mapping[str, int] = field(default_factory=dict)  # likewise; times the instances
    accelerator: Mapping[str, str] = field(default_factory=dict)  # of ONNX Runtime's CUDA provider
    graph_level: int | None = None  # of optimisation, where the backend has one
    cuda_graphs: bool = False  # replay the network as captured CUDA graphs
    max_batch: int = 0  # images of a call at most, where its batch axis is open; 0: it is not
    needs: tuple[str, ...] = ()  # what must be so where it is served, and Triton does not check
    doubts: tuple[str, ...] = ()  # where the server computes otherwise than was verified


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
    takes: ClassVar[frozenset[str]] = frozenset({"batch", "threads"})  # options it understands
    packages: ClassVar[tuple[str, ...]] = ()  # distributions whose versions say what is installed
    install: ClassVar[str] = ""  # the command that brings everything but the device

    on_progress: Progress | None = None  # told of the steps of a build, where the runtime tells

    def __init__(self, options: TargetOptions) -> None:
        self.options = options
        if unknown := sorted(options.chosen() - self.takes):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in unknown)
            raise TargetUnavailableError(
                f"target {self.name} has no option {flags}",
                fix="set it back to its default, or choose another target",
            )

    @abstractmethod
    def is_available(self) -> tuple[str, ...]:
        """Every reason why this target cannot run here; empty when it can."""

    def is_buildable(self) -> tuple[str, ...]:
        """Every reason why engines cannot be built here; a builder may need no device."""
        return self.is_available()

    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Device, versions and settings: latencies compare only when these agree."""

    @abstractmethod
    def build(
        self,
        onnx: bytes | Path,
        out: Path,
        batches: Iterable[Images] = (),
        *,
        keep_fp32: Collection[str] = (),
    ) -> BuildRecord:
        """Build an engine file at `out` from a static-shape fp32 ONNX model.

        `batches` are images of the training split, of any number each: int8 takes its ranges from
        them, fp16 is held against fp32 on them. Nodes named in `keep_fp32` stay in fp32.
        BuildError, naming the node where one is to blame, if the runtime refuses the model.
        """

    def quantizers(self) -> tuple[str, ...]:
        """Values of the option `quantizer` that can be used here, the preferred one first."""
        return ()

    def fallback_order(self, onnx: bytes | Path, batches: Iterable[Images]) -> tuple[str, ...]:
        """Nodes that `keep_fp32` may name, the one whose precision harms the logits most first."""
        return ()

    @abstractmethod
    def load(self, engine: Path) -> Engine:
        """Load a built engine file; EngineError if it is damaged or foreign."""

    def triton(self) -> TritonServing | None:
        """How Triton serves the engines; None if none of its backends does."""
        return None

    def served_files(self, engine: Path) -> Mapping[str, bytes]:
        """Files of a Triton model's version folder, by name, that serve this very engine."""
        return {f"model{self.engine_suffix}": engine.read_bytes()}

    def required(self, reasons: tuple[str, ...]) -> None:
        """TargetUnavailableError with all `reasons`, if there are any."""
        if reasons:
            raise TargetUnavailableError(f"{self.name}: {'; '.join(reasons)}", fix=self.install)


def _padded(images: Images, batch: int) -> Images:
    """(n, C, H, W) images filled up to (batch, C, H, W) with zeros, contiguous float32."""
    whole = np.zeros((batch, *images.shape[1:]), np.float32)
    whole[: len(images)] = images
    return whole
