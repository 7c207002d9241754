from __future__ import annotations

import logging
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from targets.errors import BuildError
from targets.ov.engine import (
    Settings,
    compiled_model,
    kernels_by_precision,
    read_model,
    signature_of,
)
from targets.ov.typed import (
    logits_error,
    quantized_by_nncf,
    quantized_by_qdq,
    with_f16_weights,
)
from targets.precision.reference import parsed

from ..tiny_onnx import images, tiny_model

ov = pytest.importorskip("openvino")

F32 = Settings("f32", 1)
SIGNATURE = signature_of(read_model(tiny_model()), batch=2, error=BuildError)
BATCHES = [images(16)]


def scaled(name: str, factor: float) -> bytes:
    """The tiny network with one of its weights multiplied."""
    proto = onnx.load_from_string(tiny_model())
    weight = next(w for w in proto.graph.initializer if w.name == name)
    weight.CopyFrom(numpy_helper.from_array(factor * numpy_helper.to_array(weight), name))
    return bytes(proto.SerializeToString())


def int8_convolutions(model: object) -> int:
    return kernels_by_precision(compiled_model(model, F32, BuildError), "Convolution").get("i8", 0)


def test_f16_weights_are_those_of_numpy() -> None:
    rounded = onnx.load_from_string(tiny_model())
    for weight in rounded.graph.initializer:
        if len(weight.dims) > 1:
            values = numpy_helper.to_array(weight).astype(np.float16).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    typed = with_f16_weights(parsed(tiny_model()), ())
    assert typed.kept_fp32 == ()
    assert typed.facts == {"weights": "f16", "f16_weights": 3}
    assert logits_error(typed.model, rounded, F32, SIGNATURE, BATCHES) < 1e-6
    assert logits_error(typed.model, parsed(tiny_model()), F32, SIGNATURE, BATCHES) > 1e-6


def test_f16_leaves_the_nodes_to_keep_alone() -> None:
    everything = ["conv1", "conv2", "logits"]
    typed = with_f16_weights(parsed(tiny_model()), everything)
    assert typed.kept_fp32 == ("conv1", "conv2", "logits")
    assert typed.facts["f16_weights"] == 0
    assert logits_error(typed.model, parsed(tiny_model()), F32, SIGNATURE, BATCHES) == 0.0
    one = with_f16_weights(parsed(tiny_model()), ["conv2"])
    assert (one.kept_fp32, one.facts["f16_weights"]) == (("conv2",), 2)


def test_a_weight_beyond_f16_stays_in_fp32_and_its_node_is_named() -> None:
    proto = parsed(scaled("w2", 1e6))
    typed = with_f16_weights(proto, ())
    assert (typed.kept_fp32, typed.facts["f16_weights"]) == (("conv2",), 2)
    assert logits_error(typed.model, proto, F32, SIGNATURE, BATCHES) < 5e-3


def test_without_images_the_error_is_that_on_random_ones() -> None:
    proto = parsed(tiny_model())
    typed = with_f16_weights(proto, ())
    assert 0 < logits_error(typed.model, proto, F32, SIGNATURE, []) < 5e-3


def test_qdq_computes_convolutions_in_int8_but_for_the_nodes_to_keep() -> None:
    proto = parsed(tiny_model())
    typed, one = (quantized_by_qdq(proto, BATCHES, keep) for keep in ((), ("conv2",)))
    assert (typed.kept_fp32, int8_convolutions(typed.model)) == ((), 2)
    assert (one.kept_fp32, int8_convolutions(one.model)) == (("conv2",), 1)
    assert (typed.facts["quantizer"], typed.facts["images"]) == ("qdq", 16)
    assert 1e-5 < logits_error(typed.model, proto, F32, SIGNATURE, BATCHES) < 0.05


def test_nncf_does_the_same_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nncf")
    proto, disabled, stdout = parsed(tiny_model()), logging.root.manager.disable, sys.stdout
    capfd.readouterr()
    typed, again = (quantized_by_nncf(proto, BATCHES, SIGNATURE, ()) for _ in range(2))
    one = quantized_by_nncf(proto, BATCHES, SIGNATURE, ["conv2"])
    assert capfd.readouterr() == ("", "")
    assert (logging.root.manager.disable, sys.stdout) == (disabled, stdout)
    assert (typed.kept_fp32, int8_convolutions(typed.model)) == ((), 2)
    assert (one.kept_fp32, int8_convolutions(one.model)) == (("conv2",), 1)
    assert (typed.facts["quantizer"], typed.facts["images"]) == ("nncf", 16)
    assert 1e-5 < logits_error(typed.model, proto, F32, SIGNATURE, BATCHES) < 0.1
    logits = [compiled_model(t.model, F32, BuildError)(images(2))[0] for t in (typed, again)]
    assert np.array_equal(*logits)
