from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from targets.errors import EngineError
from targets.gpu.nvml import GpuMonitor
from targets.trt.engine import RunSettings, TensorRtEngine

from .. import fake_cuda
from .. import fake_tensorrt as stand_in
from ..fake_cuda import FakeGpu, install
from ..fake_tensorrt import CLASSES, WORK_MS, fake_tensorrt

SHAPE = (2, 3, 8, 8)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return install(monkeypatch)


def opened(
    gpu: FakeGpu, *, trt: ModuleType | None = None, plan: bytes = b"plan", **settings: bool
) -> TensorRtEngine:
    monitor = GpuMonitor.open("0000:01:00.0")
    trt = trt or fake_tensorrt(gpu, SHAPE)
    return TensorRtEngine(trt, plan, RunSettings(2, **settings), monitor)


def batch(first: float, second: float) -> np.ndarray:
    return np.stack([np.full(SHAPE[1:], value, np.float32) for value in (first, second)])


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_logits_are_those_of_the_batch_that_was_given(gpu: FakeGpu, cuda_graph: bool) -> None:
    with opened(gpu, cuda_graph=cuda_graph) as engine:
        first, second = engine.infer(batch(1, 2)), engine.infer(batch(-3, 4))
    steps = np.arange(CLASSES, dtype=np.float32)
    # the first result must not be overwritten by the second
    assert np.allclose(first, [1 + steps, 2 + steps])
    assert np.allclose(second, [-3 + steps, 4 + steps])


def test_a_dynamic_batch_is_set_to_the_target_s(gpu: FakeGpu) -> None:
    with opened(gpu, trt=fake_tensorrt(gpu, (-1, 3, 8, 8))) as engine:
        assert engine.input_shape == SHAPE
        assert engine.infer(batch(1, 2)).shape == (2, CLASSES)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_device_time_is_that_of_the_network_alone(gpu: FakeGpu, cuda_graph: bool) -> None:
    with opened(gpu, device_time=True, cuda_graph=cuda_graph) as engine:
        samples = engine.time_ms(70)  # more than there are events
    assert len(samples) == 70
    assert samples.judged == "device"
    assert samples.ms == pytest.approx(np.full(70, WORK_MS))
    assert (samples.wall_ns > 0).all()


def test_both_times_and_the_gpu_s_state_are_recorded(gpu: FakeGpu) -> None:
    with opened(gpu) as engine:
        samples = engine.time_ms(3)
    assert samples.judged == "wall"
    assert np.array_equal(samples.ms, samples.wall_ns / 1e6)
    assert samples.device_ns is not None
    assert samples.device_ns.tolist() == [round(WORK_MS * 1e6)] * 3
    assert samples.gpu_mhz is not None
    assert samples.gpu_mhz.tolist() == [2520] * 3
    assert any("power cap" in doubt for doubt in samples.doubts())


def test_calls_rotate_over_their_inputs(gpu: FakeGpu) -> None:
    with opened(gpu) as engine:
        gpu.seen_inputs.clear()
        for _ in range(6):
            engine.call()
    assert gpu.seen_inputs[:3] == gpu.seen_inputs[3:]
    assert len(set(gpu.seen_inputs)) == 3


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_closing_frees_everything_and_leaves_the_context_stack_alone(
    gpu: FakeGpu, cuda_graph: bool
) -> None:
    for _ in range(200):
        with opened(gpu, cuda_graph=cuda_graph) as engine:
            engine.call()
            assert gpu.alive
        engine.close()
        assert gpu.alive == []
        assert gpu.depth == 0
        assert sys.modules["pynvml"].opened == 0


def test_a_closed_engine_stays_closed(gpu: FakeGpu) -> None:
    engine = opened(gpu)
    engine.close()
    for use in (engine.call, lambda: engine.infer(batch(0, 0)), lambda: engine.time_ms(1)):
        with pytest.raises(EngineError, match="closed"):
            use()


def test_a_plan_that_tensorrt_refuses_is_refused_in_its_words(gpu: FakeGpu) -> None:
    with pytest.raises(EngineError, match="cannot load the plan on this GPU: the plan is for SM80"):
        opened(gpu, plan=b"other")
    assert gpu.alive == []
    assert sys.modules["pynvml"].opened == 0


def test_another_batch_is_refused(gpu: FakeGpu) -> None:
    with pytest.raises(EngineError, match="batch 4, the target batch 2"):
        opened(gpu, trt=fake_tensorrt(gpu, (4, 3, 8, 8)))
    assert gpu.alive == []


def test_a_failure_of_the_device_is_an_engine_error(gpu: FakeGpu) -> None:
    with opened(gpu) as engine:
        gpu.fails_to_copy = True
        for use in (engine.call, lambda: engine.infer(batch(0, 0)), lambda: engine.time_ms(2)):
            with pytest.raises(EngineError, match="memcpy failed: an illegal memory access"):
                use()
        gpu.fails_to_copy = False
    assert gpu.depth == 0


def test_the_first_failure_is_the_one_that_is_told(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.fails_to_copy = True

    def fail(allocation: object) -> None:
        raise fake_cuda.CudaError("cuMemFree failed")

    monkeypatch.setattr(fake_cuda.Allocation, "free", fail)
    with pytest.raises(EngineError, match="memcpy failed") as raised:
        opened(gpu)
    assert "cuMemFree failed" in raised.value.__notes__[0]
    assert gpu.depth == 0
    assert sys.modules["pynvml"].opened == 0


def test_a_network_that_cannot_be_enqueued_is_an_engine_error(gpu: FakeGpu) -> None:
    with opened(gpu) as engine:
        engine._context.can_enqueue = False
        with pytest.raises(EngineError, match="could not enqueue"):
            engine.call()


def test_an_engine_that_cannot_be_captured_is_refused(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = stand_in.ExecutionContext
    monkeypatch.setattr(kind, "is_stream_capturable", lambda self, stream: False, raising=False)
    with pytest.raises(EngineError, match="cannot be captured.*--cuda-graph"):
        opened(gpu, cuda_graph=True)
    with opened(gpu):
        pass


def test_no_calls_cannot_be_timed(gpu: FakeGpu) -> None:
    with opened(gpu) as engine, pytest.raises(ValueError, match="at least one"):
        engine.time_ms(0)
