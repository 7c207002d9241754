from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from targets.base import TargetOptions
from targets.errors import BuildError, EngineError, TargetUnavailableError
from targets.ort import cpu as onnxruntime_cpu
from targets.ort.cpu import OrtCpu

from ..tiny_onnx import images, tiny_model

ort = pytest.importorskip("onnxruntime")


@pytest.fixture
def target() -> OrtCpu:
    return OrtCpu(TargetOptions(batch=2, threads=1))


def operators_of(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


def test_the_engine_is_the_optimised_graph(ort_engine: Path) -> None:
    assert "Relu" in operators_of(tiny_model())
    assert "Relu" not in operators_of(ort_engine.read_bytes())  # now part of its convolution


def test_it_computes_what_an_optimising_session_computes(target: OrtCpu, ort_engine: Path) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(tiny_model(), options, providers=["CPUExecutionProvider"])
    batch = images(2)
    with target.load(ort_engine) as engine:
        assert np.array_equal(engine.infer(batch), session.run(None, {"images": batch})[0])


def test_a_path_builds_the_same_as_its_bytes(target: OrtCpu, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny_model())
    from_path = target.build(tmp_path / "model.onnx", tmp_path / "a.onnx").engine
    from_bytes = target.build(tiny_model(), tmp_path / "b.onnx").engine
    # not byte for byte: ONNX Runtime numbers the nodes it adds in no fixed order
    assert operators_of(from_path.read_bytes()) == operators_of(from_bytes.read_bytes())
    with target.load(from_path) as one, target.load(from_bytes) as other:
        assert np.array_equal(one.infer(images(2)), other.infer(images(2)))


@pytest.mark.parametrize("kept", [0, 10, 500, -1])
def test_a_truncated_engine_is_refused(target: OrtCpu, ort_engine: Path, kept: int) -> None:
    ort_engine.write_bytes(ort_engine.read_bytes()[:kept])
    with pytest.raises(EngineError, match="tiny.onnx"):
        target.load(ort_engine)


def test_an_engine_that_the_target_did_not_build_is_refused(target: OrtCpu, tmp_path: Path) -> None:
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(tiny_model())
    with pytest.raises(EngineError, match="was not built by ort-cpu"):
        target.load(plain)


def test_an_engine_for_another_cpu_family_is_refused(target: OrtCpu, ort_engine: Path) -> None:
    target.channel_block = 24 - target.channel_block
    with pytest.raises(EngineError, match=f"blocks of {24 - target.channel_block}"):
        target.load(ort_engine)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\x08\x0a"])
def test_what_is_no_model_is_refused(target: OrtCpu, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BuildError, match="ONNX Runtime refused the model"):
        target.build(content, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_refused(target: OrtCpu, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"absent\.onnx"):
        target.build(tmp_path / "absent.onnx", tmp_path / "out.onnx")
    with pytest.raises(EngineError, match=r"absent\.onnx"):
        target.load(tmp_path / "absent.onnx")


def test_two_outputs_are_refused_by_name(target: OrtCpu, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"2: logits \(2, 5\), features \(2, 8\)"):
        target.build(tiny_model(two_outputs=True), tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_another_batch_is_refused(target: OrtCpu, tmp_path: Path, ort_engine: Path) -> None:
    with pytest.raises(BuildError, match="batch 4, the target batch 2.*--batch 4"):
        target.build(tiny_model(batch=4), tmp_path / "out.onnx")
    with pytest.raises(EngineError, match="batch 2, the target batch 4"):
        OrtCpu(TargetOptions(batch=4, threads=1)).load(ort_engine)


def test_threads_come_from_the_affinity_mask() -> None:
    before = os.sched_getaffinity(0)
    target = OrtCpu(TargetOptions())
    try:
        os.sched_setaffinity(0, {min(before)})
        assert target.fingerprint().threads == 1
        assert target._session_options(ort).intra_op_num_threads == 1
    finally:
        os.sched_setaffinity(0, before)
    assert target.fingerprint().threads == len(before)
    assert target._session_options(ort).intra_op_num_threads == len(before)
    assert OrtCpu(TargetOptions(threads=3))._session_options(ort).intra_op_num_threads == 3


def test_a_session_on_another_provider_is_refused(
    target: OrtCpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(ort.InferenceSession):  # type: ignore[misc]
        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(ort, "InferenceSession", Elsewhere)
    with pytest.raises(BuildError, match="gave CUDAExecutionProvider, CPUExecutionProvider"):
        target.build(tiny_model(), tmp_path / "out.onnx")


def test_calls_rotate_over_their_inputs(target: OrtCpu, ort_engine: Path) -> None:
    with target.load(ort_engine) as engine:
        session = engine._session  # type: ignore[attr-defined]
        seen: list[Any] = []

        class Recorder:
            def run_with_iobinding(self, binding: Any) -> None:
                seen.append(binding)
                session.run_with_iobinding(binding)

        engine._session = Recorder()  # type: ignore[attr-defined]
        for _ in range(6):
            engine.call()
        logits = [binding.get_outputs()[0].numpy() for binding in seen[:3]]
    assert seen[:3] == seen[3:]
    assert len({id(binding) for binding in seen}) == 3
    assert not np.array_equal(logits[0], logits[1])


def test_a_failure_while_timing_is_an_engine_error(target: OrtCpu, ort_engine: Path) -> None:
    class Broken:
        def run_with_iobinding(self, binding: Any) -> None:
            raise ort.capi.onnxruntime_pybind11_state.Fail("out of\nmemory")

    with target.load(ort_engine) as engine:
        engine._session = Broken()  # type: ignore[attr-defined]
        with pytest.raises(EngineError, match="the engine failed: out of memory"):
            engine.time_ms(2)


def test_a_missing_runtime_is_a_reason_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cpu.importlib.util, "find_spec", lambda name: None)
    target = OrtCpu(TargetOptions())
    (reason,) = target.is_available()
    assert reason == "onnxruntime is not installed: pip install 'wgates[ort-cpu]'"
    with pytest.raises(TargetUnavailableError, match="not installed"):
        target.fingerprint()


def test_a_damaged_runtime_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ort, "get_available_providers")
    (reason,) = OrtCpu(TargetOptions()).is_available()
    assert "damaged" in reason
    assert "--force-reinstall" in reason
