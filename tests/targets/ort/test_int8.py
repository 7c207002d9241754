"""`ort-cpu-int8`, which lives in `targets/ort/cpu.py`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from targets import load_target
from targets.base import TargetOptions
from targets.errors import BuildError, EngineError
from targets.ort import cpu as onnxruntime_cpu
from targets.ort.cpu import OrtCpu, OrtCpuInt8
from targets.precision.qdq import QdqForm

from ..tiny_onnx import tiny_model
from ..wide_range import images, network, serialised

pytest.importorskip("onnxruntime")

OPTIONS = TargetOptions(batch=2, threads=1)
CONVOLUTIONS = ("conv1", "conv2", "conv3")


@pytest.fixture
def target() -> OrtCpuInt8:
    return OrtCpuInt8(OPTIONS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "int8.onnx"


def operators_of(engine: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(engine).graph.node)


def test_it_is_registered() -> None:
    assert type(load_target("ort-cpu-int8", OPTIONS)) is OrtCpuInt8


def test_all_convolutions_run_in_integers(target: OrtCpuInt8, out: Path) -> None:
    record = target.build(network(), out, [images(16)])
    operators = operators_of(out)
    assert operators["QLinearConv"] == 3
    assert operators["QGemm"] == 1
    assert not operators.keys() & {"Conv", "FusedConv", "Gemm"}
    assert record.engine == out
    assert record.kept_fp32 == ()
    facts = json.loads(json.dumps(dict(record.facts)))
    assert facts["int8_kernels"] == {"QLinearConv": 3, "QGemm": 1}
    assert facts["fp32_convolutions"] == 0
    assert (facts["form"], facts["images"]) == (target.form.value, 16)


def test_nodes_kept_in_fp32_run_in_fp32(target: OrtCpuInt8, out: Path) -> None:
    record = target.build(network(), out, [images(16)], keep_fp32=["conv2"])
    operators = operators_of(out)
    assert operators["QLinearConv"] == 2
    assert operators["Conv"] + operators["FusedConv"] == 1
    assert record.kept_fp32 == ("conv2",)
    assert record.facts["fp32_convolutions"] == 1


def test_a_path_builds_the_same_as_its_bytes(target: OrtCpuInt8, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(network())
    from_path = target.build(tmp_path / "model.onnx", tmp_path / "a.onnx", [images(16)])
    from_bytes = target.build(network(), tmp_path / "b.onnx", iter(np.split(images(16), 4)))
    with target.load(from_path.engine) as one, target.load(from_bytes.engine) as other:
        assert np.array_equal(one.infer(images(3)), other.infer(images(3)))


def test_without_images_nothing_is_built(target: OrtCpuInt8, out: Path) -> None:
    with pytest.raises(BuildError, match="needs images") as raised:
        target.build(network(), out)
    assert "training split" in raised.value.fix
    assert list(out.parent.iterdir()) == []


def test_another_batch_is_refused(out: Path) -> None:
    target = OrtCpuInt8(TargetOptions(batch=4, threads=1))
    with pytest.raises(BuildError, match="batch 2, the target batch 4"):
        target.build(network(), out, [images(2)])
    assert list(out.parent.iterdir()) == []


def test_two_outputs_are_refused_by_name(target: OrtCpuInt8, out: Path) -> None:
    with pytest.raises(BuildError, match=r"2: logits \(2, 5\), features \(2, 8\)"):
        target.build(tiny_model(two_outputs=True), out, [images(4)])
    assert list(out.parent.iterdir()) == []


def test_a_missing_file_is_refused(target: OrtCpuInt8, out: Path) -> None:
    with pytest.raises(BuildError, match=r"absent\.onnx") as raised:
        target.build(out.with_name("absent.onnx"), out, [images(2)])
    assert raised.value.fix


def test_a_network_that_would_run_in_fp32_is_refused(target: OrtCpuInt8, out: Path) -> None:
    # pooling can be quantised, yet saves no multiplication
    kept = [*CONVOLUTIONS, "gemm"]
    with pytest.raises(BuildError, match=r"no node .* int8|nothing was quantised") as raised:
        target.build(network(), out, [images(4)], keep_fp32=kept)
    assert raised.value.fix
    assert list(out.parent.iterdir()) == []


def test_a_network_without_multiplications_is_refused(target: OrtCpuInt8, out: Path) -> None:
    twice = helper.make_node("Add", ["images", "images"], ["twice"], "add")
    pool = helper.make_node("GlobalAveragePool", ["twice"], ["pool.out"], "pool")
    flat = helper.make_node("Flatten", ["pool.out"], ["flat"], "flat")
    more = helper.make_node("Concat", ["flat", "few"], ["logits"], "concat", axis=1)
    model = serialised([twice, pool, flat, more], {"few": np.zeros((2, 2), np.float32)})
    with pytest.raises(BuildError, match="no node of this network in int8") as raised:
        target.build(model, out, [images(4)])
    assert "ort-cpu" in raised.value.fix
    assert list(out.parent.iterdir()) == []


def test_engines_of_the_other_precision_are_refused(target: OrtCpuInt8, tmp_path: Path) -> None:
    fp32 = OrtCpu(OPTIONS)
    full = fp32.build(network(), tmp_path / "fp32.onnx").engine
    small = target.build(network(), tmp_path / "int8.onnx", [images(4)]).engine
    with pytest.raises(EngineError, match="was not built by ort-cpu-int8"):
        target.load(full)
    with pytest.raises(EngineError, match="was not built by ort-cpu,"):
        fp32.load(small)


def test_the_order_of_fallback_begins_with_the_worst(target: OrtCpuInt8, out: Path) -> None:
    model = network(outlier=300.0)
    order = target.fallback_order(model, iter([images(8), images(8, seed=2)]))
    assert {order[0], order[1]} == {"conv1", "conv2"}
    assert {*CONVOLUTIONS, "gemm"} <= set(order)
    with pytest.raises(BuildError, match="needs images"):
        target.fallback_order(model, [])


@pytest.mark.parametrize("form", [QdqForm.ASYMMETRIC, QdqForm.NARROW])
def test_the_form_suits_the_cpu_and_is_part_of_the_fingerprint(
    monkeypatch: pytest.MonkeyPatch, out: Path, form: QdqForm
) -> None:
    monkeypatch.setattr(onnxruntime_cpu, "cpu_form", lambda: form)
    target = OrtCpuInt8(OPTIONS)
    assert target.form is form
    assert f"form={form.name.lower()}" in target.fingerprint().settings
    assert target.fingerprint().precision == "int8"
    assert target.build(network(), out, [images(2)]).facts["form"] == form.value


def test_an_engine_whose_weights_would_saturate_here_is_refused(
    monkeypatch: pytest.MonkeyPatch, target: OrtCpuInt8, tmp_path: Path
) -> None:
    built = {}
    for form in (QdqForm.ASYMMETRIC, QdqForm.NARROW):
        monkeypatch.setattr(onnxruntime_cpu, "cpu_form", lambda form=form: form)
        built[form] = target.build(network(), tmp_path / f"{form.name}.onnx", [images(2)]).engine
    with pytest.raises(EngineError, match="8 bits, with which this CPU's kernels saturate"):
        target.load(built[QdqForm.ASYMMETRIC])
    target.load(built[QdqForm.NARROW]).close()
    monkeypatch.setattr(onnxruntime_cpu, "cpu_form", lambda: QdqForm.ASYMMETRIC)
    for engine in built.values():
        target.load(engine).close()


def test_fp32_has_no_form_in_its_fingerprint() -> None:
    assert not any("form" in setting for setting in OrtCpu(OPTIONS).fingerprint().settings)
