from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from targets.base import TargetOptions
from targets.errors import BuildError, TargetUnavailableError
from targets.ov import int8 as openvino_int8
from targets.ov.int8 import OpenvinoCpuInt8
from targets.ov.typed import TypedModel
from targets.precision.qdq import cpu_form, fallback_order

from ..tiny_onnx import images, tiny_model

ov = pytest.importorskip("openvino")


def target(**options: Any) -> OpenvinoCpuInt8:
    return OpenvinoCpuInt8(TargetOptions(batch=2, threads=1, **options))


def without(name: str) -> Callable[[str], object]:
    return lambda module: None if module == name else object()


@pytest.mark.parametrize("quantizer", ["qdq", "nncf"])
def test_both_quantizers_give_int8_engines_that_say_so(quantizer: str, tmp_path: Path) -> None:
    pytest.importorskip("nncf" if quantizer == "nncf" else "onnxruntime")
    int8 = target(quantizer=quantizer)
    record = int8.build(tiny_model(), tmp_path / "tiny.ovblob", [images(16), images(3, seed=2)])
    assert record.facts["quantizer"] == quantizer
    assert record.facts["images"] == 19
    assert record.facts["convolutions"] == record.facts["int8_convolutions"] == 2
    assert record.facts["layers"]["i8"] >= 2
    assert f"quantizer={quantizer}" in int8.fingerprint().settings
    for name, content in int8.served_files(record.engine).items():
        (tmp_path / name).write_bytes(content)
    hints = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
    served = ov.Core().compile_model(tmp_path / "model.xml", "CPU", hints)
    with int8.load(record.engine) as engine:
        assert np.array_equal(served(images(2))[0], engine.infer(images(2)))


def test_the_default_is_qdq_and_another_is_refused_by_naming_both() -> None:
    assert target().quantizer == "qdq"
    assert target().quantizers()[0] == "qdq"
    assert target().fingerprint() == target(quantizer="qdq").fingerprint()
    with pytest.raises(TargetUnavailableError, match="no quantizer 'magic'.*qdq, nncf"):
        target(quantizer="magic")


def test_a_missing_quantizer_hinders_building_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_int8.importlib.util, "find_spec", without("nncf"))
    chosen = target(quantizer="nncf")
    assert chosen.is_available() == ()
    assert chosen.is_buildable() == ("nncf is not installed: pip install 'wgates[nncf]'",)
    assert chosen.quantizers() == ("qdq",)
    with pytest.raises(TargetUnavailableError, match="nncf is not installed"):
        chosen.build(tiny_model(), Path("never.ovblob"), [images(2)])
    assert target().is_buildable() == ()


@pytest.mark.parametrize("batches", [[], [images(0)]])
def test_no_images_are_refused(tmp_path: Path, batches: list[Any]) -> None:
    with pytest.raises(BuildError, match="got none") as refused:
        target().build(tiny_model(), tmp_path / "out.ovblob", batches)
    assert "training split" in refused.value.fix
    assert list(tmp_path.iterdir()) == []


def test_an_engine_without_int8_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unquantized(proto: Any, *given: object) -> TypedModel:
        return TypedModel(ov.Core().read_model(proto.SerializeToString()))

    monkeypatch.setattr(openvino_int8, "quantized_by_qdq", unquantized)
    with pytest.raises(BuildError, match="nothing in int8 here: its kernels are {'f32': 3}"):
        target().build(tiny_model(), tmp_path / "out.ovblob", [images(4)])
    assert list(tmp_path.iterdir()) == []


def test_the_fallback_order_is_that_of_this_cpus_form() -> None:
    batches = [images(8), images(8, seed=2)]
    order = target().fallback_order(tiny_model(), iter(batches))
    assert order == fallback_order(tiny_model(), batches, cpu_form())
    assert {"conv1", "conv2"} <= set(order)
