"""The CUDA layer: what is missing to run, which device there is, and captured graphs.

Memory, streams and events come from pycuda; it has no graphs, so these are captured by
cuda.bindings on the handle of pycuda's stream. Both share the device's primary context.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from targets.errors import EngineError, TargetUnavailableError

DRIVER = "libcuda.so.1"
DEVICE = 0  # the first that CUDA_VISIBLE_DEVICES shows

_CAPABILITY = re.compile(r"(?:sm_?)?(\d{1,2})\.?(\d)a?", re.IGNORECASE)


@dataclass(frozen=True)
class GpuDevice:
    """The GPU that targets run on."""

    name: str  # such as "NVIDIA GeForce RTX 4090"
    compute_capability: str  # such as "sm89"
    memory_mb: int
    pci_bus_id: str  # by which NVML knows it, whatever CUDA_VISIBLE_DEVICES hides


def parse_capability(text: str) -> str:
    """ "sm89" for "sm89", "SM_89", "89" or "8.9"; ValueError for anything else."""
    matched = _CAPABILITY.fullmatch(text.strip())
    if matched is None:
        raise ValueError(f"{text!r} is no compute capability; write it like sm89")
    return f"sm{matched[1]}{matched[2]}"


def driver_reasons() -> tuple[str, ...]:
    """Why NVIDIA's driver cannot be used; empty if its library loads."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError as error:
        return (f"NVIDIA's driver is missing ({error})",)
    return ()


def bindings_reasons() -> tuple[str, ...]:
    """Why cuda.bindings is not usable or sees no device; empty if it sees one."""
    if not _is_installed("cuda.bindings"):
        return ("cuda.bindings is not installed: pip install cuda-bindings",)
    runtime = _runtime()
    error, count = runtime.cudaGetDeviceCount()
    if error != runtime.cudaError_t.cudaSuccess:
        return (f"CUDA finds no device: {error_words(runtime, error)}",)
    return () if count else ("CUDA finds no device",)


def pycuda_reasons() -> tuple[str, ...]:
    """Why pycuda cannot be used; a driver that is missing is named by `driver_reasons`."""
    if not _is_installed("pycuda"):
        return ("pycuda is not installed: pip install pycuda (needs the CUDA toolkit)",)
    if driver_reasons():
        return ()  # its extension module links the driver
    try:
        importlib.import_module("pycuda.driver")
    except ImportError as error:
        return (f"pycuda is damaged or built for another CUDA: {error}",)
    return ()


def cuda_reasons() -> tuple[str, ...]:
    """Every reason why nothing can run on a GPU through pycuda and cuda.bindings."""
    return (*driver_reasons(), *pycuda_reasons(), *bindings_reasons())


def error_words(runtime: Any, error: Any) -> str:
    """ "no CUDA-capable device is detected (cudaErrorNoDevice, 100)" for an error code."""
    _, words = runtime.cudaGetErrorString(error)
    return f"{words.decode()} ({error.name}, {int(error)})"


def device() -> GpuDevice:
    """The GPU that is used; TargetUnavailableError if there is none."""
    if reasons := (*driver_reasons(), *bindings_reasons()):
        raise TargetUnavailableError("; ".join(reasons), fix="run this where a GPU is")
    runtime = _runtime()
    properties = checked(runtime, runtime.cudaGetDeviceProperties(DEVICE))
    bus = checked(runtime, runtime.cudaDeviceGetPCIBusId(32, DEVICE))
    return GpuDevice(
        name=_text(properties.name),
        compute_capability=f"sm{properties.major}{properties.minor}",
        memory_mb=properties.totalGlobalMem >> 20,
        pci_bus_id=_text(bus),
    )


def contexts_here() -> int:
    """1 if this process holds the device's primary context, so that NVML lists it; else 0.

    Only asks: where CUDA was not used it is not begun with.
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return 0
    handle, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
    if driver.cuDeviceGet(ctypes.byref(handle), DEVICE):  # not initialised, or no such device
        return 0
    told = ctypes.byref(flags), ctypes.byref(active)
    return 0 if driver.cuDevicePrimaryCtxGetState(handle, *told) else int(active.value != 0)


def checked(runtime: Any, result: tuple[Any, ...]) -> Any:
    """What a call of cuda.bindings returned beside its error code; EngineError if it failed."""
    error, *values = result
    if error != runtime.cudaError_t.cudaSuccess:
        raise EngineError(f"CUDA failed: {error_words(runtime, error)}", fix="see nvidia-smi")
    return values[0] if values else None


@functools.cache
def primary_context() -> Any:
    """pycuda's handle of the primary context, which CUDA's runtime API uses too.

    Kept until the interpreter ends: the last release would destroy it under other users.
    """
    driver = importlib.import_module("pycuda.driver")
    driver.init()
    atexit.register(primary_context.cache_clear)  # later, CUDA may be gone already
    return driver.Device(DEVICE).retain_primary_context()


@contextmanager
def current_context() -> Iterator[None]:
    """Make the primary context current on this thread, and the former one again afterwards."""
    context = primary_context()
    context.push()
    try:
        yield
    finally:
        context.pop()


@contextmanager
def translated(context: str) -> Iterator[None]:
    """Turn pycuda's errors into EngineError."""
    driver = importlib.import_module("pycuda.driver")
    try:
        yield
    except driver.Error as error:
        message = " ".join(str(error).split())
        raise EngineError(f"{context}: {message}", fix="see nvidia-smi for its state") from error


class Graph:
    """Work on one stream, captured once and launched as a whole."""

    def __init__(self, stream: Any, enqueue: Callable[[], None]) -> None:
        """Capture what `enqueue` puts on pycuda's `stream`; it must have run there before."""
        runtime = self._runtime = _runtime()
        self._stream = runtime.cudaStream_t(stream.handle)
        graph = _captured(runtime, self._stream, enqueue)
        try:
            self._executable = checked(runtime, runtime.cudaGraphInstantiate(graph, 0))
        finally:
            checked(runtime, runtime.cudaGraphDestroy(graph))

    def launch(self) -> None:
        """Put the captured work on the stream again."""
        (error,) = self._runtime.cudaGraphLaunch(self._executable, self._stream)
        if error != self._runtime.cudaError_t.cudaSuccess:
            checked(self._runtime, (error,))

    def close(self) -> None:
        """Free the executable graph; a second call does nothing."""
        executable, self._executable = self._executable, None
        if executable is not None:
            checked(self._runtime, self._runtime.cudaGraphExecDestroy(executable))


def _captured(runtime: Any, stream: Any, enqueue: Callable[[], None]) -> Any:
    """The graph of what `enqueue` puts on the stream; the capture ends even if that fails."""
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    checked(runtime, runtime.cudaStreamBeginCapture(stream, mode))
    try:
        enqueue()
    except BaseException:
        error, graph = runtime.cudaStreamEndCapture(stream)
        if error == runtime.cudaError_t.cudaSuccess:
            checked(runtime, runtime.cudaGraphDestroy(graph))
        raise
    return checked(runtime, runtime.cudaStreamEndCapture(stream))


def _runtime() -> Any:
    return importlib.import_module("cuda.bindings.runtime")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def _text(value: bytes | str) -> str:
    text = value.decode() if isinstance(value, bytes) else value
    return text.rstrip("\0")
