"""A stand-in for the module pynvml."""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any


class NvmlError(Exception):
    pass


class NotSupportedError(NvmlError):
    pass


class NoPermissionError(NvmlError):
    pass


def fake_nvml(**answers: Any) -> ModuleType:
    """`answers` are what its functions return or raise; `opened` counts what was not shut down."""
    module = ModuleType("pynvml")
    module.__spec__ = ModuleSpec("pynvml", None)
    module.opened = 0

    def count(by: int) -> None:
        module.opened += by

    replies = {
        "nvmlDeviceGetHandleByPciBusId": "handle",
        "nvmlSystemGetDriverVersion": "580.95.05",
        "nvmlDeviceGetClockInfo": 2520,
        "nvmlDeviceGetPowerUsage": 320_000,
        "nvmlDeviceGetCurrentClocksEventReasons": 0x04,
        "nvmlDeviceGetApplicationsClock": 1980,
        "nvmlDeviceGetMaxClockInfo": 2610,
        "nvmlDeviceGetComputeRunningProcesses": processes(11),
        "nvmlDeviceGetGraphicsRunningProcesses": [],
        **answers,
    }
    vars(module).update({name: _replying(module, value) for name, value in replies.items()})
    vars(module).update(
        nvmlInit=lambda: count(1),
        nvmlShutdown=lambda: count(-1),
        NVML_CLOCK_SM=1,
        NVMLError=NvmlError,
        NVMLError_NotSupported=NotSupportedError,
        NVMLError_NoPermission=NoPermissionError,
    )
    return module


def processes(*pids: int) -> list[SimpleNamespace]:
    """What NVML lists for these process ids."""
    return [SimpleNamespace(pid=pid) for pid in pids]


def _replying(module: ModuleType, value: Any) -> Callable[..., Any]:
    def function(*arguments: Any) -> Any:
        assert module.opened > 0, "NVML is not initialised"
        if isinstance(value, Exception):
            raise value
        return value

    return function
