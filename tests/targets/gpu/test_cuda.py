from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest

from targets.errors import EngineError, TargetUnavailableError
from targets.gpu import cuda

from ..fake_cuda import FakeGpu, install


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return install(monkeypatch)


@pytest.mark.parametrize("text", ["sm89", "SM89", "sm_89", "8.9", "89", " sm89 "])
def test_a_capability_has_one_spelling(text: str) -> None:
    assert cuda.parse_capability(text) == "sm89"


def test_capabilities_of_three_digits() -> None:
    assert cuda.parse_capability("12.0") == cuda.parse_capability("sm_120") == "sm120"


@pytest.mark.parametrize("text", ["", "ada", "sm", "9", "8.9.1", "sm89,sm86", "1234"])
def test_what_is_no_capability_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no compute capability.*sm89"):
        cuda.parse_capability(text)


def test_the_device_is_described(gpu: FakeGpu) -> None:
    assert cuda.cuda_reasons() == ()
    found = cuda.device()
    assert found == cuda.GpuDevice("Fake GPU", "sm89", 24 * 1024, "0000:01:00.0")


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda.ctypes, "CDLL", refuse)


@pytest.mark.usefixtures("no_driver")
def test_a_missing_driver_is_a_reason() -> None:
    assert cuda.driver_reasons() == (
        "NVIDIA's driver is missing (libcuda.so.1: cannot open shared object file)",
    )
    with pytest.raises(TargetUnavailableError, match=r"libcuda\.so\.1"):
        cuda.device()


class Driver:
    """Stands for libcuda: what it answers about this process's primary context."""

    def __init__(self, *, begun: int = 0, told: int = 0, active: int = 0) -> None:
        self.begun, self.told, self.active = begun, told, active

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = 7 + ordinal
        return self.begun

    def cuDevicePrimaryCtxGetState(self, device: Any, flags: Any, active: Any) -> int:  # noqa: N802
        assert device.value == 7 + cuda.DEVICE
        active._obj.value = self.active
        return self.told


@pytest.mark.parametrize(
    ("driver", "held"),
    [
        (Driver(active=1), 1),
        (Driver(active=0), 0),
        (Driver(begun=3, active=1), 0),  # CUDA was not used in this process
        (Driver(told=1, active=1), 0),
    ],
)
def test_whether_this_process_holds_the_device(
    driver: Driver, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: driver)
    assert cuda.contexts_here() == held


@pytest.mark.usefixtures("no_driver")
def test_without_a_driver_no_device_is_held() -> None:
    assert cuda.contexts_here() == 0


def test_every_missing_package_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [reason.split(" is not")[0] for reason in cuda.cuda_reasons()][-2:] == [
        "pycuda",
        "cuda.bindings",
    ]


def test_a_package_s_missing_parent_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", refuse)
    assert cuda.bindings_reasons() == ("cuda.bindings is not installed: pip install cuda-bindings",)


@pytest.mark.parametrize(
    ("error", "count", "words"),
    [
        ("cudaErrorNoDevice", None, "no CUDA-capable device is detected (cudaErrorNoDevice, 100)"),
        ("cudaErrorInsufficientDriver", None, "driver version is insufficient"),
        ("cudaSuccess", 0, "CUDA finds no device"),
    ],
)
def test_cuda_s_own_words_are_the_reason(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, error: str, count: int | None, words: str
) -> None:
    runtime = sys.modules["cuda.bindings.runtime"]
    code = getattr(runtime.cudaError_t, error)
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (code, count))
    (reason,) = cuda.bindings_reasons()
    assert words in reason


def test_a_pycuda_for_another_cuda_is_a_reason(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    (reason,) = cuda.pycuda_reasons()
    assert reason.startswith("pycuda is damaged or built for another CUDA")


def test_errors_are_told_by_name(gpu: FakeGpu) -> None:
    runtime = sys.modules["cuda.bindings.runtime"]
    assert cuda.checked(runtime, (runtime.cudaError_t.cudaSuccess, 7)) == 7
    assert cuda.checked(runtime, (runtime.cudaError_t.cudaSuccess,)) is None
    with pytest.raises(EngineError, match=r"out of memory \(cudaErrorMemoryAllocation, 2\)"):
        cuda.checked(runtime, (runtime.cudaError_t.cudaErrorMemoryAllocation, None))


def test_the_context_is_popped_after_a_failure(gpu: FakeGpu) -> None:
    def fail_inside() -> None:
        with cuda.current_context():
            assert gpu.depth == 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert gpu.depth == 0


def test_a_capture_ends_when_the_work_fails(gpu: FakeGpu) -> None:
    driver = sys.modules["pycuda.driver"]

    def fail() -> None:
        raise EngineError("it could not be enqueued")

    with cuda.current_context():
        stream = driver.Stream(1)
        with pytest.raises(EngineError, match="could not be enqueued"):
            cuda.Graph(stream, fail)
        stream.synchronize()  # asserts that nothing is being captured
    assert gpu.alive == []


def test_a_graph_repeats_what_was_captured(gpu: FakeGpu) -> None:
    driver = sys.modules["pycuda.driver"]
    done: list[int] = []
    with cuda.current_context():
        stream = driver.Stream(1)
        graph = cuda.Graph(stream, lambda: stream.put(lambda: done.append(1)))
        assert done == []
        graph.launch()
        graph.launch()
        stream.synchronize()
        assert done == [1, 1]
        graph.close()
        graph.close()
    assert gpu.alive == []


@pytest.mark.gpu
def test_the_real_device_has_a_name_and_a_capability() -> None:
    if reasons := cuda.cuda_reasons():
        pytest.skip("; ".join(reasons))
    found = cuda.device()
    assert found.name
    assert cuda.parse_capability(found.compute_capability) == found.compute_capability
    assert found.memory_mb > 0
