from __future__ import annotations

import sys
from types import ModuleType

import pytest

from targets.errors import TargetUnavailableError
from targets.gpu import nvml
from targets.gpu.nvml import GpuMonitor, GpuReading, nvml_reasons, throttle_words
from targets.samples import Samples

from ..fake_nvml import NotSupportedError, NvmlError, fake_nvml, processes


def monitored(monkeypatch: pytest.MonkeyPatch, **answers: object) -> tuple[GpuMonitor, ModuleType]:
    module = fake_nvml(**answers)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return GpuMonitor.open("0000:01:00.0"), module


def test_a_reading_is_in_plain_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, _ = monitored(monkeypatch)
    assert monitor.read() == GpuReading(mhz=2520, mw=320_000, throttle=0x04, foreign=0)
    assert monitor.driver() == "580.95.05"
    assert monitor.clocks() == "application 1980, max 2610 MHz"


@pytest.mark.parametrize(
    ("compute", "graphics", "foreign"),
    [
        ((11,), (), 0),  # one of them is this process, under whichever id
        ((11,), (11,), 0),  # a process that does both is listed twice
        ((11, 12), (), 1),
        ((11,), (1, 2), 2),
        ((), (), 0),
    ],
)
def test_foreign_processes_are_all_but_one(
    monkeypatch: pytest.MonkeyPatch, compute: tuple[int], graphics: tuple[int], foreign: int
) -> None:
    monitor, _ = monitored(
        monkeypatch,
        nvmlDeviceGetComputeRunningProcesses=processes(*compute),
        nvmlDeviceGetGraphicsRunningProcesses=processes(*graphics),
    )
    assert monitor.read().foreign == foreign


def test_what_a_device_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = NotSupportedError()
    monitor, _ = monitored(
        monkeypatch,
        nvmlDeviceGetPowerUsage=silent,
        nvmlDeviceGetComputeRunningProcesses=silent,
        nvmlDeviceGetApplicationsClock=silent,
    )
    assert monitor.read() == GpuReading(mhz=2520, mw=None, throttle=0x04, foreign=None)
    assert monitor.clocks() == "max 2610 MHz"
    samples = monitor.read().added_to(Samples([10, 20], [1, 1], [0, 0]))
    assert samples.gpu_mw is None
    assert samples.gpu_mhz is not None
    assert samples.gpu_mhz.tolist() == [2520, 2520]


def test_other_failures_are_not_taken_for_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, _ = monitored(monkeypatch, nvmlDeviceGetPowerUsage=NvmlError("the GPU is lost"))
    with pytest.raises(NvmlError, match="lost"):
        monitor.read()


def test_closing_gives_nvml_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, module = monitored(monkeypatch)
    other = GpuMonitor.open("0000:01:00.0")
    monitor.close()
    monitor.close()
    assert module.opened == 1
    assert other.read().mhz == 2520
    other.close()
    assert module.opened == 0


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (0, ()),
        (0x01, ("idle",)),
        (0x04, ("power cap",)),
        (0x42, ("clocks set by the user", "thermal slowdown by hardware")),
        (0x4004, ("power cap", "unknown reasons 0x4000")),
    ],
)
def test_throttle_masks_in_words(mask: int, words: tuple[str, ...]) -> None:
    assert throttle_words(mask) == words


def test_reasons_to_slow_down_are_nvml_s() -> None:
    pynvml = pytest.importorskip("pynvml")
    assert throttle_words(pynvml.nvmlClocksThrottleReasonSwPowerCap) == ("power cap",)
    assert throttle_words(pynvml.nvmlClocksThrottleReasonHwThermalSlowdown) == (
        "thermal slowdown by hardware",
    )
    assert throttle_words(pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting) == (
        "clocks set by the user",
    )
    assert throttle_words(pynvml.nvmlClocksThrottleReasonGpuIdle) == ("idle",)


def test_without_nvml_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_nvml()
    module.nvmlInit = lambda: (_ for _ in ()).throw(NvmlError("NVML Shared Library Not Found"))
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert nvml_reasons() == ("NVML cannot be used: NVML Shared Library Not Found",)
    with pytest.raises(TargetUnavailableError, match="Not Found"):
        GpuMonitor.open("0000:01:00.0")
    monkeypatch.setattr(nvml.importlib.util, "find_spec", lambda name: None)
    assert nvml_reasons() == ("nvidia-ml-py is not installed: pip install nvidia-ml-py",)
