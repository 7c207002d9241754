from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from targets.errors import BuildError, EngineError
from targets.ov.engine import (
    OpenvinoEngine,
    Settings,
    compiled_model,
    imported_model,
    kernels_by_precision,
    read_model,
    representation,
    signature_of,
    translated,
    useful_lines,
)

from ..tiny_onnx import images, tiny_model

ov = pytest.importorskip("openvino")

F32 = Settings("f32", 1)

# as OpenVINO words it
MESSAGE = """Exception from src/inference/src/cpp/core.cpp:217:
Exception from src/inference/src/dev/plugin.cpp:74:
Check 'res.status == pugi::status_ok' failed at src/frontends/ir/src/input_model.cpp:229:
Error parsing start element tag at offset 3370


"""


@pytest.fixture
def compiled() -> Any:
    return compiled_model(read_model(tiny_model()), F32, BuildError)


@pytest.fixture
def engine(compiled: Any) -> Iterator[OpenvinoEngine]:
    with OpenvinoEngine(compiled, signature_of(compiled, batch=2, error=EngineError)) as made:
        yield made


def test_a_blob_forgets_its_settings_and_gets_them_again(compiled: Any) -> None:
    blob = compiled.export_model().getvalue()
    forgetful = ov.Core().import_model(blob, "CPU", {})
    default = ov.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
    assert forgetful.get_property("INFERENCE_PRECISION_HINT").to_string() == default
    loaded = imported_model(blob, F32, "cannot load it")
    assert loaded.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert loaded.get_property("INFERENCE_NUM_THREADS") == 1
    assert loaded.get_property("NUM_STREAMS") == 1
    assert loaded.get_property("ENABLE_CPU_PINNING") is False


def test_other_settings_than_asked_for_are_refused(compiled: Any) -> None:
    with pytest.raises(EngineError, match="asked for f16, OpenVINO would compute in f32"):
        Settings("f16", 1).require_given(compiled, EngineError)
    with pytest.raises(EngineError, match="asked for 2 threads, OpenVINO gives 1") as refused:
        Settings("f32", 2).require_given(compiled, EngineError)
    assert "--threads 1" in refused.value.fix


def test_kernels_are_counted_by_the_precision_that_they_compute_in(compiled: Any) -> None:
    assert kernels_by_precision(compiled, "Convolution") == {"f32": 2}
    everything = kernels_by_precision(compiled)
    assert everything["f32"] > 2
    assert set(everything) == {"f32"}


@pytest.mark.skipif(
    "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="no bf16 here"
)
def test_bf16_kernels_are_seen() -> None:
    unasked = ov.Core().compile_model(read_model(tiny_model()), "CPU", {})
    assert kernels_by_precision(unasked, "Convolution") == {"bf16": 2}


def test_calls_rotate_over_resident_inputs(engine: OpenvinoEngine) -> None:
    requests = [next(engine._calls).func.__self__ for _ in range(6)]  # type: ignore[attr-defined]
    assert requests[:3] == requests[3:]
    inputs = [request.get_input_tensor().data.copy() for request in requests[:3]]
    for _ in range(3):
        engine.call()
    logits = [request.get_output_tensor().data for request in requests[:3]]
    for batch, found in zip(inputs, logits, strict=True):
        assert np.array_equal(found, engine.infer(batch))
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(logits, 2))


def test_logits_are_a_copy(engine: OpenvinoEngine) -> None:
    first = engine.infer_batch(images(2))
    kept = first.copy()
    engine.infer_batch(images(2, seed=9))
    assert np.array_equal(first, kept)


def test_a_batch_of_another_shape_is_not_stretched(engine: OpenvinoEngine) -> None:
    with pytest.raises(EngineError, match=r"takes images \(2, 3, 8, 8\), not \(1, 3, 8, 8\)"):
        engine.infer_batch(images(1))


def test_a_failure_while_timing_is_an_engine_error(engine: OpenvinoEngine) -> None:
    def broken() -> None:
        raise RuntimeError("Exception from src/a.cpp:1:\nout of memory\n")

    engine._calls = itertools.cycle([broken])
    with pytest.raises(EngineError, match="^the engine failed: out of memory"):
        engine.time_ms(2)


def test_only_the_useful_line_of_a_message_is_told() -> None:
    assert useful_lines(MESSAGE) == "Error parsing start element tag at offset 3370"
    assert useful_lines("Exception from src/a.cpp:1:\n") == "Exception from src/a.cpp:1:"
    with pytest.raises(BuildError, match="^no: Error parsing start"), translated(BuildError, "no"):
        raise RuntimeError(MESSAGE)
    with pytest.raises(ZeroDivisionError), translated(BuildError, "no"):
        raise ZeroDivisionError


def test_the_representation_computes_the_same(engine: OpenvinoEngine, tmp_path: Any) -> None:
    xml, weights = representation(read_model(tiny_model()))
    (tmp_path / "model.xml").write_bytes(xml)
    (tmp_path / "model.bin").write_bytes(weights)
    again = ov.Core().compile_model(tmp_path / "model.xml", "CPU", F32.properties())
    assert np.array_equal(again(images(2))[0], engine.infer(images(2)))


def test_a_size_that_is_not_fixed_is_refused() -> None:
    model = read_model(tiny_model())
    model.reshape([-1, 3, 8, 8])
    with pytest.raises(BuildError, match=r"images \(\?, 3, 8, 8\) has a size that is not fixed"):
        signature_of(model, batch=2, error=BuildError)
