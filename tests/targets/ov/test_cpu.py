from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from targets import load_target
from targets.base import Target, TargetOptions
from targets.errors import BuildError, EngineError, TargetUnavailableError
from targets.ov import cpu as openvino_cpu
from targets.ov.cpu import OpenvinoCpu, OpenvinoCpuFp16
from targets.ov.file import EngineFile
from targets.precision.reference import Runner

from ..tiny_onnx import images, tiny_model

ov = pytest.importorskip("openvino")

OPTIONS = TargetOptions(batch=2, threads=1)
HAS_BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
HAS_FP16 = "FP16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture
def target() -> OpenvinoCpu:
    return OpenvinoCpu(OPTIONS)


@pytest.fixture
def built(target: OpenvinoCpu, tmp_path: Path) -> Path:
    return target.build(tiny_model(), tmp_path / "tiny.ovblob").engine


def spoiled(model: bytes, *, op_type: str, domain: str) -> bytes:
    """The model with its first Relu made into another operator, called "blamed"."""
    proto = onnx.load_from_string(model)
    node = next(node for node in proto.graph.node if node.op_type == "Relu")
    node.name, node.op_type, node.domain = "blamed", op_type, domain
    if domain:
        proto.opset_import.add(domain=domain, version=1)
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize("precision", ["", "-fp16", "-int8"])
def test_openvino_itself_would_compute_in_bf16_where_it_can_but_the_target_does_not(
    precision: str, tmp_path: Path
) -> None:
    target = load_target(f"openvino-cpu{precision}", OPTIONS)
    record = target.build(tiny_model(), tmp_path / "tiny.ovblob", [images(16)])
    unasked = ov.Core().compile_model(ov.Core().read_model(tiny_model()), "CPU", {})
    given = unasked.get_property("INFERENCE_PRECISION_HINT").to_string()
    serving = target.triton()
    assert serving is not None
    # Triton's backend cannot be told the precision
    assert bool(serving.doubts) is (given != record.facts["compute"])
    assert all(f"computes in {given}" in doubt for doubt in serving.doubts)
    assert record.facts["compute"] in ("f32", "f16")
    assert not {"bf16"} & record.facts["layers"].keys()
    assert f"compute={record.facts['compute']}" in target.fingerprint().settings


def test_fp32_logits_are_exact_to_float_rounding(target: OpenvinoCpu, built: Path) -> None:
    expected = Runner(onnx.load_from_string(tiny_model())).logits(images(6))
    with target.load(built) as engine:
        assert np.abs(engine.infer(images(6)) - expected).max() < 1e-5


def test_what_triton_gets_computes_what_the_engine_computes(
    target: OpenvinoCpu, built: Path, tmp_path: Path
) -> None:
    for name, content in target.served_files(built).items():
        (tmp_path / name).write_bytes(content)
    assert set(target.served_files(built)) == {"model.xml", "model.bin"}
    hints = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
    served = ov.Core().compile_model(tmp_path / "model.xml", "CPU", hints)
    with target.load(built) as engine:
        assert np.array_equal(served({"images": images(2)})["logits"], engine.infer(images(2)))


def test_loading_is_quicker_than_building(target: OpenvinoCpu, tmp_path: Path) -> None:
    model, out = tiny_model(width=256), tmp_path / "wide.ovblob"
    target.build(model, out)
    building, loading = [], []
    for _ in range(3):
        started = time.perf_counter()
        target.build(model, out)
        between = time.perf_counter()
        target.load(out).close()
        building.append(between - started)
        loading.append(time.perf_counter() - between)
    assert min(loading) < min(building)


def test_a_path_builds_the_same_as_its_bytes(target: OpenvinoCpu, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny_model())
    from_path = target.build(tmp_path / "model.onnx", tmp_path / "a.ovblob").engine
    from_bytes = target.build(tiny_model(), tmp_path / "b.ovblob").engine
    with target.load(from_path) as one, target.load(from_bytes) as other:
        assert np.array_equal(one.infer(images(2)), other.infer(images(2)))


@pytest.mark.parametrize(("op_type", "domain"), [("Frobnicate", ""), ("Frobnicate", "odd.ones")])
def test_an_operator_that_it_lacks_is_named_with_its_node(
    target: OpenvinoCpu, tmp_path: Path, op_type: str, domain: str
) -> None:
    model = spoiled(tiny_model(), op_type=op_type, domain=domain)
    with pytest.raises(BuildError, match=r"(?s)blamed.*Frobnicate|Frobnicate.*blamed") as refused:
        target.build(model, tmp_path / "out.ovblob")
    assert refused.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\x08\x0a"])
def test_what_is_no_model_is_refused(target: OpenvinoCpu, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BuildError):
        target.build(content, tmp_path / "out.ovblob")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_refused(target: OpenvinoCpu, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"absent\.onnx: No such file"):
        target.build(tmp_path / "absent.onnx", tmp_path / "out.ovblob")
    with pytest.raises(EngineError, match=r"absent\.ovblob"):
        target.load(tmp_path / "absent.ovblob")


def test_two_outputs_are_refused_by_name(target: OpenvinoCpu, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"2: logits \(2, 5\), features \(2, 8\)"):
        target.build(tiny_model(two_outputs=True), tmp_path / "out.ovblob")
    assert list(tmp_path.iterdir()) == []


def test_another_batch_is_refused(target: OpenvinoCpu, tmp_path: Path, built: Path) -> None:
    with pytest.raises(BuildError, match=r"batch 4, the target batch 2.*--batch 4"):
        target.build(tiny_model(batch=4), tmp_path / "out.ovblob")
    with pytest.raises(EngineError, match="batch 2, the target batch 4"):
        OpenvinoCpu(TargetOptions(batch=4, threads=1)).load(built)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target": "openvino-cpu-int8"}, "built by openvino-cpu-int8, not by openvino-cpu"),
        ({"runtime": "2025.0.0-1-abc"}, r"built by OpenVINO 2025\.0\.0-1-abc, here is 2"),
        ({"isa": ("amx_tile", "avx2")}, "built for a CPU with amx_tile avx2 that computes in f32"),
        ({"compute": "f16"}, "computes in f16"),
    ],
)
def test_an_engine_for_something_else_is_refused(
    target: OpenvinoCpu, built: Path, change: dict[str, object], reason: str
) -> None:
    content = EngineFile.read(built)
    replace(content, stamp=replace(content.stamp, **change)).write(built)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=reason) as refused:
        target.load(built)
    assert "build it again" in refused.value.fix


def test_a_blob_that_openvino_refuses_is_an_engine_error(target: OpenvinoCpu, built: Path) -> None:
    content = EngineFile.read(built)
    replace(content, blob=content.blob[: len(content.blob) // 2]).write(built)
    with pytest.raises(EngineError, match=r"cannot load .*tiny\.ovblob") as refused:
        target.load(built)
    assert "\n" not in refused.value.message
    assert "src/" not in refused.value.message


def test_nothing_is_deserialised_before_the_hash_agrees(
    target: OpenvinoCpu, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(openvino_cpu, "imported_model", lambda *given: seen.append("import"))
    built.write_bytes(built.read_bytes()[:-1] + b"!")
    with pytest.raises(EngineError, match="damaged"):
        target.load(built)
    assert seen == []


def test_threads_come_from_the_affinity_mask_and_too_many_are_refused(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert OpenvinoCpu(TargetOptions()).fingerprint().threads == 1
    finally:
        os.sched_setaffinity(0, before)
    many = OpenvinoCpu(TargetOptions(batch=2, threads=len(os.sched_getaffinity(0)) + 1000))
    with pytest.raises(BuildError, match=r"asked for \d+ threads, OpenVINO gives") as refused:
        many.build(tiny_model(), tmp_path / "out.ovblob")
    assert "--threads" in refused.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_damaged_runtime_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("libopenvino.so: cannot open\nmore")

    target = OpenvinoCpu(TargetOptions())
    monkeypatch.setattr(openvino_cpu, "core", broken)
    (reason,) = target.is_available()
    assert reason.startswith("openvino is damaged (libopenvino.so: cannot open)")
    monkeypatch.setattr(openvino_cpu.importlib.util, "find_spec", lambda name: None)
    assert target.is_available() == ("openvino is not installed: pip install 'wgates[openvino]'",)
    with pytest.raises(TargetUnavailableError, match="not installed"):
        target.fingerprint()


@pytest.mark.skipif(HAS_FP16, reason="this CPU computes in f16")
def test_without_f16_arithmetic_only_the_weights_are_f16(target: Target, tmp_path: Path) -> None:
    half, model = OpenvinoCpuFp16(OPTIONS), tiny_model(width=128)
    record = half.build(model, tmp_path / "half.ovblob")
    plain = target.build(model, tmp_path / "plain.ovblob").engine
    assert record.facts["compute"] == "f32"
    assert record.facts["f16_weights"] == 3
    assert 0 < record.facts["logits_error"] < 5e-3
    assert {"compute=f32", "weights=f16"} <= set(half.fingerprint().settings)
    blobs = [len(EngineFile.read(path).blob) for path in (record.engine, plain)]
    assert blobs[0] < 0.6 * blobs[1]


def test_fp16_refuses_what_it_would_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_cpu, "TOLERANCE", 1e-7)
    with pytest.raises(BuildError, match=r"off by \S+ of the largest, over 1e-07") as refused:
        OpenvinoCpuFp16(OPTIONS).build(tiny_model(), tmp_path / "out.ovblob", [images(3)])
    assert "openvino-cpu" in refused.value.fix
    assert list(tmp_path.iterdir()) == []


def test_where_it_computes_in_f16_no_node_stays_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_cpu, "device_property", lambda name: ["FP16", "FP32"])
    half = OpenvinoCpuFp16(OPTIONS)
    assert "compute=f16" in half.fingerprint().settings
    with pytest.raises(BuildError, match="no node can stay in fp32"):
        half.build(tiny_model(), tmp_path / "out.ovblob", keep_fp32=["conv1"])


@pytest.mark.skipif(HAS_FP16 or not HAS_BF16, reason="needs a CPU with bf16 and without f16")
def test_a_hint_that_silently_becomes_bf16_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_cpu, "device_property", lambda name: ["FP16", "FP32"])
    with pytest.raises(BuildError, match="asked for f16, OpenVINO would compute in bf16"):
        OpenvinoCpuFp16(OPTIONS).build(tiny_model(), tmp_path / "out.ovblob")
    assert list(tmp_path.iterdir()) == []


def test_unknown_nodes_to_keep_are_named(target: OpenvinoCpu, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="nosuch"):
        target.build(tiny_model(), tmp_path / "out.ovblob", keep_fp32=["nosuch"])
