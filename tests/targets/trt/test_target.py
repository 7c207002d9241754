"""The targets with TensorRT-RTX: builds are real, what runs is so where a GPU is."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from targets import load_target
from targets.base import TargetOptions
from targets.errors import BuildError, EngineError, TargetUnavailableError
from targets.trt import target as tensorrt_target
from targets.trt.plan_file import PlanHeader, bare, read_plan, write_plan
from targets.trt.target import TrtFp32, TrtRtxFp16, TrtRtxFp32, TrtRtxInt8

from ..fake_cuda import FakeGpu, install
from ..fake_tensorrt import fake_tensorrt
from ..tiny_onnx import images, tiny_model

trt = pytest.importorskip("tensorrt_rtx")

RTX = ("trt-rtx-fp32", "trt-rtx-fp16", "trt-rtx-int8")
PLAIN = ("trt-fp32", "trt-fp16", "trt-int8")


@pytest.fixture
def target() -> TrtRtxFp32:
    return TrtRtxFp32(TargetOptions(batch=2, threads=1))


@pytest.fixture
def engine(target: TrtRtxFp32, tmp_path: Path) -> Path:
    return target.build(tiny_model(), tmp_path / "tiny.plan").engine


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """An sm89 with everything installed, TensorRT itself as well."""
    fake = install(monkeypatch)
    module = fake_tensorrt(fake, (2, 3, 8, 8))
    module.__spec__ = trt.__spec__
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return fake


@pytest.mark.parametrize("name", RTX)
def test_it_builds_without_a_gpu(name: str, tmp_path: Path) -> None:
    target = load_target(name, TargetOptions(batch=2, threads=1))
    assert target.is_buildable() == ()
    record = target.build(tiny_model(), tmp_path / "tiny.plan", [images(8)])
    header, plan = read_plan(record.engine)
    assert header.target == name
    assert header.runtime == f"tensorrt_rtx {trt.__version__}"
    assert header.onnx_sha256 == hashlib.sha256(tiny_model()).hexdigest()
    assert record.facts["plan_bytes"] == len(plan)
    assert json.loads(json.dumps(record.facts)) == record.facts
    assert list(tmp_path.iterdir()) == [record.engine]


def test_nodes_that_stay_in_fp32_are_recorded(tmp_path: Path) -> None:
    target = TrtRtxInt8(TargetOptions(batch=2))
    worst, *_ = target.fallback_order(tiny_model(), [images(8)])
    all_int8 = target.build(tiny_model(), tmp_path / "a.plan", [images(8)])
    record = target.build(tiny_model(), tmp_path / "b.plan", [images(8)], keep_fp32=[worst])
    assert record.kept_fp32 == (worst,)
    assert all_int8.kept_fp32 == ()
    int8_layers = [item.facts["layers_by_type"]["int8"] for item in (all_int8, record)]
    assert int8_layers[1] < int8_layers[0]


def test_only_int8_has_an_order_of_fallbacks() -> None:
    assert TrtRtxFp16(TargetOptions(batch=2)).fallback_order(tiny_model(), [images(8)]) == ()


def test_a_path_builds_like_its_bytes(target: TrtRtxFp32, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny_model())
    record = target.build(tmp_path / "model.onnx", tmp_path / "a.plan")
    again = target.build(tiny_model(), tmp_path / "b.plan")
    # plans are not reproducible byte for byte
    for name in ("plan_bytes", "layers_by_type"):
        assert record.facts[name] == again.facts[name]


def test_a_refused_model_leaves_no_file(target: TrtRtxFp32, tmp_path: Path) -> None:
    for content in (b"hello", b"garbage" * 100, tiny_model(batch=4)):
        with pytest.raises(BuildError):
            target.build(content, tmp_path / "out.plan")
    assert list(tmp_path.iterdir()) == []


def test_capabilities_are_an_option(tmp_path: Path) -> None:
    target = TrtRtxFp32(TargetOptions(batch=2, compute_capabilities=("sm89", "12.0")))
    record = target.build(tiny_model(), tmp_path / "a.plan")
    assert read_plan(record.engine)[0].compute_capabilities == ("sm89", "sm120")
    missing = TrtRtxFp32(TargetOptions(compute_capabilities=("sm90", "sm89")))
    (reason,) = missing.is_buildable()
    assert reason.startswith("sm90 is none of tensorrt_rtx's targets: sm75, sm80, sm86, sm89")
    with pytest.raises(TargetUnavailableError, match="sm90 is none"):
        missing.build(tiny_model(), tmp_path / "b.plan")
    with pytest.raises(TargetUnavailableError, match="'ada' is no compute capability.*sm89"):
        TrtRtxFp32(TargetOptions(compute_capabilities=("ada",)))
    with pytest.raises(TargetUnavailableError, match="no option --compute-capabilities"):
        TrtFp32(TargetOptions(compute_capabilities=("sm89",)))


def test_a_build_can_be_watched_and_stopped(tmp_path: Path) -> None:
    target = TrtRtxFp32(TargetOptions(batch=2))
    target.on_progress = lambda *step: False
    with pytest.raises(BuildError, match="cancelled"):
        target.build(tiny_model(), tmp_path / "a.plan")
    assert list(tmp_path.iterdir()) == []


def test_every_reason_is_given_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError("libcuda.so.1: no such file")

    monkeypatch.setattr("targets.gpu.cuda.ctypes.CDLL", refuse)
    monkeypatch.setattr("targets.gpu.cuda._is_installed", lambda name: False)
    monkeypatch.setattr(tensorrt_target, "nvml_reasons", lambda: ("no NVML",))
    reasons = "; ".join(TrtRtxFp32(TargetOptions()).is_available())
    for part in ("libcuda.so.1", "pycuda is not", "cuda.bindings is not", "no NVML"):
        assert part in reasons
    monkeypatch.setattr(tensorrt_target.importlib.util, "find_spec", lambda name: None)
    plain = load_target("trt-fp16", TargetOptions())
    assert plain.is_buildable() == plain.is_available()
    assert plain.is_available()[0] == "tensorrt is not installed: pip install 'wgates[trt]'"
    assert "onnxruntime is not installed" in plain.is_available()[1]


def test_bindings_without_their_libraries_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise OSError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(TrtRtxFp32, "_trt", refuse)
    (reason,) = TrtRtxFp32(TargetOptions()).is_buildable()
    assert reason.startswith("tensorrt_rtx is damaged (libnvinfer.so.11: cannot open")


@pytest.mark.parametrize("kept", [0, 10, 200, -1])
def test_a_truncated_engine_is_refused(target: TrtRtxFp32, engine: Path, kept: int) -> None:
    engine.write_bytes(engine.read_bytes()[:kept])
    with pytest.raises(EngineError, match=r"tiny\.plan.*(cut short|foreign)"):
        target.load(engine)


def test_engines_of_others_are_refused_before_any_gpu_is_asked_for(
    target: TrtRtxFp32, engine: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="built by trt-rtx-fp32, not trt-rtx-fp16"):
        TrtRtxFp16(TargetOptions(batch=2)).load(engine)
    with pytest.raises(EngineError, match="batch 2, the target batch 3.*--batch 2"):
        TrtRtxFp32(TargetOptions(batch=3)).load(engine)
    header, plan = read_plan(engine)
    write_plan(engine, replace(header, runtime="tensorrt_rtx 1.0"), plan)
    with pytest.raises(EngineError, match=r"built by tensorrt_rtx 1\.0, here is tensorrt_rtx 1"):
        target.load(engine)
    (tmp_path / "model.plan").write_bytes(bare(engine))
    with pytest.raises(EngineError, match="foreign"):
        target.load(tmp_path / "model.plan")


def test_triton_gets_the_bare_plan(target: TrtRtxFp32, engine: Path) -> None:
    plan = read_plan(engine)[1]
    assert target.served_files(engine) == {"model.plan": plan}
    serving = TrtFp32(TargetOptions()).triton()
    assert serving is not None
    assert (serving.backend, serving.on_gpu) == ("tensorrt", True)
    assert (serving.doubts, serving.cuda_graphs) == ((), False)
    assert "TensorRT" in serving.needs[0]
    with_graph = TrtFp32(TargetOptions(cuda_graph=True)).triton()
    assert with_graph is not None
    assert with_graph.cuda_graphs
    assert target.triton() is None


def test_the_fingerprint_holds_device_driver_and_clocks(gpu: FakeGpu) -> None:
    options = TargetOptions(batch=2, threads=1, device_time=True, cuda_graph=True)
    found = TrtRtxFp32(options).fingerprint()
    assert found.device == "Fake GPU, 24576 MiB"
    assert found.isa == ("sm89",)
    assert found.driver == "580.95.05"
    assert found.clocks == "application 1980, max 2610 MHz"
    assert {"cuda_graph=on", "interval=device", "tf32=off"} <= set(found.settings)
    plain = TrtRtxFp32(TargetOptions(batch=2, threads=1)).fingerprint()
    (difference,) = found.differences(plain)
    assert "interval=host end-to-end" in difference
    assert sys.modules["pynvml"].opened == 0


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_a_reason(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TrtRtxFp32(TargetOptions()).is_available() == ()
    found = tensorrt_target.device()
    hopper = replace(found, compute_capability="sm90")
    monkeypatch.setattr(tensorrt_target, "device", lambda: hopper)
    (reason,) = TrtRtxFp32(TargetOptions()).is_available()
    assert reason.startswith("tensorrt_rtx does not run on sm90, only on sm75, sm80")


def test_engines_for_another_gpu_are_refused(gpu: FakeGpu, tmp_path: Path) -> None:
    options = TargetOptions(batch=2, compute_capabilities=("sm86",))
    built = TrtRtxFp32(options).build(tiny_model(), tmp_path / "a.plan")
    assert TrtRtxFp32(options).is_available() == (
        "this GPU is sm89, the engines are to be for sm86",
    )
    with pytest.raises(EngineError, match="built for sm86, this GPU is sm89"):
        TrtRtxFp32(TargetOptions(batch=2)).load(built.engine)


def test_tensorrt_s_own_plans_run_where_they_were_built(gpu: FakeGpu, tmp_path: Path) -> None:
    target = TrtFp32(TargetOptions(batch=2, device_time=True))
    assert target.is_available() == ()
    path = tmp_path / "a.plan"
    header = PlanHeader("trt-fp32", "tensorrt 11.4.0", (), "Fake GPU (sm89)", 2, "0" * 64)
    write_plan(path, header, b"plan")
    with target.load(path) as loaded:
        assert loaded.infer(np.ones((3, 3, 8, 8), np.float32))[2].tolist() == [1, 2, 3, 4, 5]
        assert loaded.time_ms(2).judged == "device"
    assert gpu.alive == []
    write_plan(path, replace(header, device="NVIDIA L4 (sm89)"), b"plan")
    with pytest.raises(EngineError, match=r"built on NVIDIA L4 \(sm89\), here is Fake GPU"):
        target.load(path)


def exported_resnet18() -> bytes:
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    model = models.resnet18(weights=None).train()
    with torch.no_grad():
        for seed in range(2):  # gives batch norm statistics of its own
            model(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))
    program = torch.onnx.export(
        model.eval(), (torch.randn(1, 3, 64, 64),), dynamo=True, external_data=False, verbose=False
    )
    return program.model_proto.SerializeToString()


@pytest.mark.slow
def test_resnet18_builds_in_every_precision(tmp_path: Path) -> None:
    content = exported_resnet18()
    batch = np.random.default_rng(0).standard_normal((4, 3, 64, 64), dtype=np.float32)
    sizes = {}
    for name in RTX:
        target = load_target(name, TargetOptions(batch=1, threads=1))
        record = target.build(content, tmp_path / f"{name}.plan", [batch])
        sizes[name] = record.facts["plan_bytes"]
        assert record.kept_fp32 == ()
    assert sizes["trt-rtx-fp32"] > 1.8 * sizes["trt-rtx-fp16"] > 1.8 * sizes["trt-rtx-int8"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", RTX + PLAIN)
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_both_clocks_on_a_real_gpu(name: str, cuda_graph: bool, tmp_path: Path) -> None:
    target = load_target(name, TargetOptions(batch=2, threads=1, cuda_graph=cuda_graph))
    if reasons := target.is_available():
        pytest.skip("; ".join(reasons))
    built = target.build(tiny_model(width=256), tmp_path / "a.plan", [images(8)])
    with target.load(built.engine) as loaded:
        samples = loaded.time_ms(50)
        batch = images(2)
        assert np.array_equal(loaded.infer(batch), loaded.infer(batch))
    assert samples.device_ns is not None
    assert (samples.device_ns > 0).all()
    # the device works within the time that the caller waits
    assert np.median(samples.device_ns) < np.median(samples.wall_ns)


@pytest.mark.gpu
@pytest.mark.parametrize("name", RTX + PLAIN)
def test_a_dynamic_batch_on_a_real_gpu(name: str, tmp_path: Path) -> None:
    target = load_target(name, TargetOptions(batch=4))
    if reasons := target.is_available():
        pytest.skip("; ".join(reasons))
    model = onnx.load_from_string(tiny_model())
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    built = target.build(model.SerializeToString(), tmp_path / "a.plan", [images(8)])
    with target.load(built.engine) as loaded:
        assert loaded.infer(images(5)).shape == (5, 5)
