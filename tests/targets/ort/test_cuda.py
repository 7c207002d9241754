"""The CUDA targets of ONNX Runtime; the engine's logic runs on the CPU provider as well."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from targets import load_target
from targets.base import TargetOptions
from targets.errors import BuildError, EngineError, TargetUnavailableError
from targets.gpu.nvml import GpuMonitor
from targets.ort import cuda as onnxruntime_cuda
from targets.ort.cuda import OrtCuda, OrtCudaFp16, runtime_reasons
from targets.ort.cuda_engine import OrtCudaEngine
from targets.ort.session import stamp
from targets.signature import Signature

from ..fake_nvml import fake_nvml
from ..tiny_onnx import CLASSES, images, tiny_model

ort = pytest.importorskip("onnxruntime")

NAMES = ("ort-cuda", "ort-cuda-fp16")


def session() -> object:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(tiny_model(), options, providers=["CPUExecutionProvider"])


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> OrtCudaEngine:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    monitor = GpuMonitor.open("0000:01:00.0")
    signature = Signature("images", "logits", (2, 3, 8, 8), CLASSES)
    return OrtCudaEngine(ort, session(), signature, monitor, device="cpu")


def stamped(path: Path, **entries: str) -> Path:
    path.write_bytes(tiny_model())
    stamp(path, {f"wgates.{name}": value for name, value in entries.items()})
    return path


def test_logits_are_those_of_the_batch_that_was_given(engine: OrtCudaEngine) -> None:
    first, second = engine.infer(images(2, seed=1)), engine.infer(images(3, seed=2))
    expected = session().run(None, {"images": images(2, seed=1)})[0]
    assert np.array_equal(first, expected)  # not overwritten by the second
    assert second.shape == (3, CLASSES)
    assert first.dtype == np.float32


def test_calls_rotate_over_their_inputs_at_one_address(engine: OrtCudaEngine) -> None:
    address = engine._images.data_ptr()
    seen = []
    for _ in range(6):
        engine.call()
        seen.append(engine._images.numpy().copy())
    assert engine._images.data_ptr() == address
    for now, later in zip(seen[:3], seen[3:], strict=True):
        assert np.array_equal(now, later)
    assert not np.array_equal(seen[0], seen[1])


def test_times_come_with_the_gpu_s_state(engine: OrtCudaEngine) -> None:
    samples = engine.time_ms(40)  # more than one piece
    assert len(samples) == 40
    assert samples.judged == "wall"
    assert samples.gpu_mw is not None
    assert samples.gpu_mw.tolist() == [320_000] * 40


def test_a_closed_engine_stays_closed(engine: OrtCudaEngine) -> None:
    engine.close()
    engine.close()
    assert sys.modules["pynvml"].opened == 0
    for use in (engine.call, lambda: engine.infer(images(2)), lambda: engine.time_ms(1)):
        with pytest.raises(EngineError, match="closed"):
            use()


def test_a_wheel_without_the_provider_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    both = [SimpleNamespace(name="onnxruntime"), SimpleNamespace(name="onnxruntime_gpu")]
    monkeypatch.setattr(onnxruntime_cuda, "distributions", lambda: both)
    (reason,) = runtime_reasons()
    assert reason.startswith("onnxruntime lies over onnxruntime-gpu: pip uninstall onnxruntime")
    monkeypatch.setattr(onnxruntime_cuda, "distributions", lambda: both[:1])
    (reason,) = runtime_reasons()
    assert reason.startswith("this onnxruntime has no CUDAExecutionProvider")


def test_missing_libraries_are_named_one_by_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = (
        "Failed to load libcurand.so.10: libcurand.so.10: cannot open shared object file\n"
        "Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file\n"
        "Please follow the instructions to install CUDA.\n"
    )

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: sys.stdout.write(printed), raising=False)
    assert [reason.split(":")[0] for reason in runtime_reasons()] == [
        "libcurand.so.10 is missing",
        "libcublas.so.13 is missing",
    ]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("message", "reasons"),
    [
        ("libcudnn.so.9: cannot open", 1),
        ("libcuda.so.1: cannot open", 0),  # the driver's own reason says that
    ],
)
def test_what_the_provider_links_is_tried(
    monkeypatch: pytest.MonkeyPatch, message: str, reasons: int
) -> None:
    def refuse(path: str, mode: int = 0) -> None:
        if path.endswith("providers_cuda.so"):
            raise OSError(message)

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime_cuda.ctypes, "CDLL", refuse)
    found = runtime_reasons()
    assert len(found) == reasons
    assert all("its CUDA provider does not load (libcudnn.so.9" in reason for reason in found)


def test_a_missing_or_damaged_runtime_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.delattr(ort, "get_available_providers")
        (reason,) = runtime_reasons()
        assert "damaged" in reason
        assert "--force-reinstall" in reason
    monkeypatch.setattr(onnxruntime_cuda.importlib.util, "find_spec", lambda name: None)
    assert runtime_reasons() == (
        "onnxruntime-gpu is not installed: pip install 'wgates[ort-cuda]'",
    )


def test_a_session_that_fell_back_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCpu(ort.InferenceSession):
        def __init__(self, model: bytes, options: object, providers: list[object]) -> None:
            ((name, chosen),) = providers
            assert name == "CUDAExecutionProvider"
            assert chosen["enable_cuda_graph"] == "1"
            super().__init__(model, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", OnCpu)
    target = OrtCuda(TargetOptions(batch=2, cuda_graph=True))
    with pytest.raises(BuildError, match="asked for CUDAExecutionProvider.*gave CPUExecution"):
        target._session(ort, tiny_model(), BuildError)


def test_nothing_is_built_where_cuda_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "runtime_reasons", lambda: ("no provider",))
    monkeypatch.setattr(onnxruntime_cuda, "driver_reasons", lambda: ("no driver",))
    target = OrtCuda(TargetOptions(batch=2))
    assert target.is_buildable()[:2] == ("no provider", "no driver")
    with pytest.raises(TargetUnavailableError, match="no provider; no driver"):
        target.build(tiny_model(), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_engines_of_others_are_refused_before_any_gpu_is_asked_for(tmp_path: Path) -> None:
    target = OrtCuda(TargetOptions(batch=2))
    with pytest.raises(EngineError, match="not built by ort-cuda, or is cut short"):
        target.load(stamped(tmp_path / "a.onnx"))
    with pytest.raises(EngineError, match="not built by ort-cuda-fp16"):
        OrtCudaFp16(TargetOptions()).load(stamped(tmp_path / "b.onnx", target="ort-cuda"))
    whole = stamped(tmp_path / "c.onnx", target="ort-cuda", runtime="1").read_bytes()
    for kept in (0, 100, len(whole) - 1):
        (tmp_path / "c.onnx").write_bytes(whole[:kept])
        with pytest.raises(EngineError, match="cut short"):
            target.load(tmp_path / "c.onnx")
    with pytest.raises(EngineError, match=r"cannot read .*absent\.onnx"):
        target.load(tmp_path / "absent.onnx")


def test_another_version_s_engine_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(OrtCuda, "is_available", lambda self: ())
    path = stamped(tmp_path / "a.onnx", target="ort-cuda", runtime="0.1")
    with pytest.raises(EngineError, match=r"built by onnxruntime 0\.1, here is"):
        OrtCuda(TargetOptions(batch=2)).load(path)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_it_runs_on_a_real_gpu(name: str, cuda_graph: bool, tmp_path: Path) -> None:
    target = load_target(name, TargetOptions(batch=2, threads=1, cuda_graph=cuda_graph))
    if reasons := target.is_available():
        pytest.skip("; ".join(reasons))
    built = target.build(tiny_model(), tmp_path / "a.onnx", [images(8)])
    with target.load(built.engine) as loaded:
        found = loaded.infer(images(5))
        assert len(loaded.time_ms(40)) == 40
    expected = np.concatenate(
        [session().run(None, {"images": part})[0] for part in (images(5)[:2], images(5)[2:4])]
    )
    assert np.abs(found[:4] - expected).max() <= 5e-3 * np.abs(expected).max()
