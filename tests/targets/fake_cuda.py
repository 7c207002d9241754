"""Stand-ins for pycuda and cuda.bindings.

What is put on a stream happens only when somebody waits for it, every call needs the primary
context to be current, and whatever is not freed stays listed in `FakeGpu.alive`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from targets.gpu import cuda

from .fake_nvml import fake_nvml

COPY_MS = 0.25


class FakeGpu:
    """The state behind all stand-ins."""

    def __init__(self) -> None:
        self.depth = 0  # how often the primary context was pushed
        self.clock_ms = 0.0
        self.memory: dict[int, Any] = {}
        self.alive: list[object] = []
        self.captured: list[Callable[[], None]] | None = None
        self.fails_to_copy = False
        self.seen_inputs: list[float] = []

    def require_context(self) -> None:
        assert self.depth == 1, "the primary context is not current"

    def born(self, thing: object) -> None:
        self.require_context()
        self.alive.append(thing)

    def freed(self, thing: object) -> None:
        self.require_context()
        (index,) = (i for i, other in enumerate(self.alive) if other is thing)
        del self.alive[index]


class CudaError(Exception):
    pass


class Context:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def push(self) -> None:
        self.gpu.depth += 1

    def pop(self) -> None:
        self.gpu.depth -= 1


class Stream:
    def __init__(self, gpu: FakeGpu, flags: int) -> None:
        gpu.require_context()
        assert flags == 1, "it would wait for the default stream"
        self.gpu, self.handle = gpu, id(self)
        self.queue: list[Callable[[], None]] = []
        gpu.memory[self.handle] = self

    def put(self, work: Callable[[], None]) -> None:
        self.gpu.require_context()
        (self.queue if self.gpu.captured is None else self.gpu.captured).append(work)

    def synchronize(self) -> None:
        self.gpu.require_context()
        assert self.gpu.captured is None, "waiting breaks a capture"
        queue, self.queue = self.queue, []
        for work in queue:
            work()

    def copy(self, target: np.ndarray, source: np.ndarray) -> None:
        def work() -> None:
            if self.gpu.fails_to_copy:
                raise CudaError("memcpy failed:\nan illegal memory access")
            np.copyto(flat(target), flat(source))
            self.gpu.clock_ms += COPY_MS

        self.put(work)


class Event:
    def __init__(self, gpu: FakeGpu) -> None:
        gpu.require_context()
        self.gpu, self.at_ms = gpu, 0.0

    def record(self, stream: Stream) -> None:
        stream.put(self._happen)

    def time_since(self, earlier: Event) -> float:
        return self.at_ms - earlier.at_ms

    def _happen(self) -> None:
        self.at_ms = self.gpu.clock_ms


class Allocation:
    def __init__(self, gpu: FakeGpu, size: int) -> None:
        self.gpu, self.content = gpu, np.zeros(size, np.uint8)
        gpu.born(self)
        gpu.memory[int(self)] = self

    def __int__(self) -> int:
        return id(self)

    def free(self) -> None:
        self.gpu.freed(self)


class Pinned:
    """The owner of page-locked memory, as pycuda's arrays have it as their base."""

    def __init__(self, gpu: FakeGpu, shape: tuple[int, ...]) -> None:
        self.gpu, self._values = gpu, np.full(shape, np.nan, np.float32)
        self.__array_interface__ = self._values.__array_interface__
        gpu.born(self)

    def free(self) -> None:
        self.gpu.freed(self)


class Runtime:
    """The functions of cuda.bindings.runtime."""

    def __init__(self, gpu: FakeGpu, real: Any) -> None:
        self._gpu, self._done = gpu, real.cudaError_t.cudaSuccess
        for name in ("cudaError_t", "cudaGetErrorString", "cudaStreamCaptureMode"):
            setattr(self, name, getattr(real, name))
        self.cudaStream_t = int

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:  # noqa: N802
        self._gpu.captured = []
        return (self._done,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:  # noqa: N802
        work, self._gpu.captured = self._gpu.captured, None
        self._gpu.alive.append(work)
        return self._done, work

    def cudaGraphInstantiate(self, graph: list[Any], flags: int) -> tuple[Any, ...]:  # noqa: N802
        executable = SimpleNamespace(work=list(graph))
        self._gpu.alive.append(executable)
        return self._done, executable

    def cudaGraphLaunch(self, executable: Any, stream: int) -> tuple[Any, ...]:  # noqa: N802
        for work in executable.work:
            self._gpu.memory[stream].put(work)
        return (self._done,)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:  # noqa: N802
        self._gpu.freed(graph)
        return (self._done,)

    cudaGraphExecDestroy = cudaGraphDestroy  # noqa: N815

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:  # noqa: N802
        return self._done, 1

    def cudaGetDeviceProperties(self, number: int) -> tuple[Any, ...]:  # noqa: N802
        memory = 24 << 30
        known = SimpleNamespace(name=b"Fake GPU\0\0", major=8, minor=9, totalGlobalMem=memory)
        return self._done, known

    def cudaDeviceGetPCIBusId(self, length: int, number: int) -> tuple[Any, ...]:  # noqa: N802
        return self._done, b"0000:01:00.0\0"


def flat(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, (n,), in place."""
    return array.reshape(-1).view(np.uint8)


def fake_pycuda(gpu: FakeGpu) -> ModuleType:
    """A module like `pycuda.driver`."""
    driver = ModuleType("pycuda.driver")
    vars(driver).update(
        init=lambda: None,
        Error=CudaError,
        Device=lambda number: SimpleNamespace(retain_primary_context=lambda: Context(gpu)),
        Stream=functools.partial(Stream, gpu),
        Event=functools.partial(Event, gpu),
        mem_alloc=functools.partial(Allocation, gpu),
        pagelocked_empty=lambda shape, dtype: np.asarray(Pinned(gpu, shape)),
        memcpy_htod_async=lambda to, host, stream: stream.copy(to.content, host),
        memcpy_dtoh_async=lambda host, at, stream: stream.copy(host, at.content),
    )
    return driver


def install(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Put stand-ins in the place of pycuda, cuda.bindings, NVML and the driver's library."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    gpu = FakeGpu()
    package = ModuleType("pycuda")
    package.__spec__ = ModuleSpec("pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake_pycuda(gpu))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", Runtime(gpu, runtime))
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: None)
    fresh = functools.cache(cuda.primary_context.__wrapped__)
    monkeypatch.setattr(cuda, "primary_context", fresh)
    return gpu
