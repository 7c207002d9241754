"""What NVML says about one GPU: clock, power, what slows it down, and who else uses it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from targets.doubts import THROTTLE_REASONS
from targets.errors import TargetUnavailableError
from targets.samples import Samples

_NAMES = {  # the bits of NVML's clock event reasons that do not slow a busy GPU down
    0x01: "idle",
    0x02: "clocks set by the user",
    0x100: "display clock",
}


@dataclass(frozen=True)
class GpuReading:
    """The state of a GPU at one moment; None where the device does not tell."""

    mhz: int | None  # of the streaming multiprocessors
    mw: int | None
    throttle: int | None  # bit mask of NVML's clock event reasons
    foreign: int | None  # other processes on the device

    def added_to(self, samples: Samples) -> Samples:
        """Samples of calls that ended with this reading, with it in their columns."""

        def column(value: int | None) -> NDArray[np.int64] | None:
            return None if value is None else np.full(len(samples), value, np.int64)

        return replace(
            samples,
            gpu_mhz=column(self.mhz),
            gpu_mw=column(self.mw),
            gpu_throttle=column(self.throttle),
            gpu_foreign=column(self.foreign),
        )


def nvml_reasons() -> tuple[str, ...]:
    """Why NVML cannot be read; empty if it can."""
    if importlib.util.find_spec("pynvml") is None:
        return ("nvidia-ml-py is not installed: pip install nvidia-ml-py",)
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return (f"NVML cannot be used: {error}",)
    nvml.nvmlShutdown()
    return ()


def throttle_words(mask: int) -> tuple[str, ...]:
    """Each reason in a bit mask of NVML in words, slowing ones and harmless ones."""
    known = {**_NAMES, **THROTTLE_REASONS}
    words = [known[bit] for bit in sorted(known) if mask & bit]
    unknown = mask & ~sum(known)
    return (*words, f"unknown reasons {unknown:#x}") if unknown else tuple(words)


class GpuMonitor:
    """Reads one GPU, which this process holds a CUDA context on. `close` it."""

    def __init__(self, nvml: Any, pci_bus_id: str) -> None:
        self._nvml = nvml
        nvml.nvmlInit()  # counted: each needs its shutdown
        self._handle = nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id.encode())
        self._is_open = True

    @classmethod
    def open(cls, pci_bus_id: str) -> Self:
        """The monitor of the GPU in that slot; TargetUnavailableError if NVML cannot be used."""
        if reasons := nvml_reasons():
            raise TargetUnavailableError("; ".join(reasons), fix="install NVIDIA's driver")
        return cls(importlib.import_module("pynvml"), pci_bus_id)

    def read(self) -> GpuReading:
        """The state now; takes up to a millisecond, so never inside a timed call."""
        nvml = self._nvml
        return GpuReading(
            mhz=self._told(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            mw=self._told(nvml.nvmlDeviceGetPowerUsage),
            throttle=self._told(nvml.nvmlDeviceGetCurrentClocksEventReasons),
            foreign=self._foreign(),
        )

    def driver(self) -> str:
        """The driver's version, such as "580.95.05"."""
        return str(self._nvml.nvmlSystemGetDriverVersion())

    def clocks(self) -> str:
        """Clocks that an administrator may have set, such as "application 1980, max 1980 MHz"."""
        nvml = self._nvml
        kinds = {
            "application": nvml.nvmlDeviceGetApplicationsClock,
            "max": nvml.nvmlDeviceGetMaxClockInfo,
        }
        told = {name: self._told(read, nvml.NVML_CLOCK_SM) for name, read in kinds.items()}
        words = ", ".join(f"{name} {mhz}" for name, mhz in told.items() if mhz is not None)
        return f"{words} MHz" if words else ""

    def close(self) -> None:
        """Give NVML back; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._nvml.nvmlShutdown()

    def _told(self, read: Callable[..., Any], *arguments: Any) -> int | None:
        """What the device answers; None where it does not support the question."""
        try:
            return int(read(self._handle, *arguments))
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_NoPermission):
            return None

    def _foreign(self) -> int | None:
        """Processes on the GPU beside this one; None where the device does not list them.

        Inside a container NVML lists the host's process ids, so ours cannot be looked for. But
        we hold a context: one of those listed is ours, whatever its number.
        """
        nvml = self._nvml
        try:
            listed = {
                process.pid
                for of in (
                    nvml.nvmlDeviceGetComputeRunningProcesses,
                    nvml.nvmlDeviceGetGraphicsRunningProcesses,
                )
                for process in of(self._handle)
            }
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission):
            return None
        return max(0, len(listed) - 1)
