from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from targets.base import Images
from targets.errors import BuildError
from targets.precision import qdq
from targets.precision.qdq import (
    ORDER_IMAGES,
    QdqForm,
    Ranges,
    calibrate_ranges,
    cpu_form,
    fallback_order,
    sensitivity,
    to_qdq,
)
from targets.precision.reference import relative_error

from ..tiny_onnx import tiny_model
from ..wide_range import images, network

ort = pytest.importorskip("onnxruntime")

FORMS = list(QdqForm)


@pytest.fixture(scope="module")
def ranges() -> Ranges:
    return calibrate_ranges(network(), [images(32)])


def error(model: bytes, original: bytes) -> float:
    batch = images(2, seed=2)
    logits, expected = (
        ort.InferenceSession(each, providers=["CPUExecutionProvider"]).run(None, {"images": batch})
        for each in (model, original)
    )
    return relative_error(logits[0], expected[0])


def initializers(model: bytes) -> dict[str, np.ndarray]:
    graph = onnx.load_from_string(model).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def of_type(model: bytes, op_type: str) -> list[onnx.NodeProto]:
    return [n for n in onnx.load_from_string(model).graph.node if n.op_type == op_type]


def test_ranges_are_the_extremes_of_every_tensor(ranges: Ranges) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(network(batch=32)))
    names = ["images", *(value.name for value in model.graph.value_info), "logits"]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names[1:])
    values = [images(32), *ReferenceEvaluator(model).run(None, {"images": images(32)})]
    assert ranges.limits.keys() == set(names)
    for name, value in zip(names, values, strict=True):
        assert np.allclose(ranges.limits[name], (value.min(), value.max()), rtol=1e-4, atol=1e-5)
    assert (ranges.images, ranges.method) == (32, "minmax")


def test_ranges_do_not_depend_on_how_images_are_parted(ranges: Ranges) -> None:
    def once() -> Iterator[Images]:
        yield from np.split(images(32), [1, 2, 7, 7])

    parted = calibrate_ranges(network(), once())
    assert parted.limits == ranges.limits
    assert parted.images == 32


@pytest.mark.parametrize("batches", [[], [images(0)]])
def test_without_images_there_are_no_ranges(batches: list[Images]) -> None:
    with pytest.raises(BuildError, match="needs images") as raised:
        calibrate_ranges(network(), batches)
    assert "training split" in raised.value.fix


def test_ranges_that_are_not_finite_are_refused() -> None:
    with pytest.raises(BuildError, match=r"network itself computes .* in conv1\.out") as raised:
        calibrate_ranges(network(gain=1e38), [100 * images(2)])
    assert raised.value.fix


@pytest.mark.parametrize("form", FORMS)
def test_every_form_computes_nearly_the_same(ranges: Ranges, form: QdqForm) -> None:
    quantized = to_qdq(network(), ranges, form)
    onnx.checker.check_model(onnx.load_from_string(quantized.onnx), full_check=True)
    assert 0 < error(quantized.onnx, network()) < 0.05
    assert quantized.kept_fp32 == ()
    facts = json.loads(json.dumps(dict(quantized.facts)))
    assert facts["quantizer"] == f"onnxruntime {ort.__version__}"
    assert (facts["form"], facts["calibration"], facts["images"]) == (form.value, "minmax", 32)
    assert facts["quantized_tensors"] == len(of_type(quantized.onnx, "QuantizeLinear"))


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_symmetric_int8_per_channel(ranges: Ranges, form: QdqForm) -> None:
    tensors = initializers(to_qdq(network(), ranges, form).onnx)
    for name in ("conv1.weight", "conv2.weight", "conv3.weight"):
        weight = tensors[f"{name}_quantized"]
        assert weight.dtype == np.int8
        assert tensors[f"{name}_scale"].shape == (8,)
        assert not tensors[f"{name}_zero_point"].any()
        # each channel uses its range up, which in the narrow form is 7 bits
        largest = np.abs(weight.astype(int)).reshape(8, -1).max(axis=1)
        assert set(largest) <= ({63, 64} if form is QdqForm.NARROW else {127, 128})


@pytest.mark.parametrize("form", FORMS)
def test_activations_and_biases_are_of_the_form(ranges: Ranges, form: QdqForm) -> None:
    quantized = to_qdq(network(), ranges, form).onnx
    tensors = initializers(quantized)
    zeros = [tensors[node.input[2]] for node in of_type(quantized, "QuantizeLinear")]
    biases = {name for name in tensors if "bias" in name and tensors[name].dtype == np.int32}
    if form is QdqForm.SYMMETRIC:
        assert {zero.dtype for zero in zeros} == {np.dtype(np.int8)}
        assert not np.any(zeros)
        assert not biases
        # nothing is rounded between a convolution and its ReLU: they are one kernel
        readers = {name: node for node in of_type(quantized, "Relu") for name in node.input}
        assert all(node.output[0] in readers for node in of_type(quantized, "Conv"))
    else:
        assert {zero.dtype for zero in zeros} == {np.dtype(np.uint8)}
        assert np.any(zeros)
        assert any(name.startswith("conv1.bias_quantized") for name in biases)


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_not_rounded(ranges: Ranges, form: QdqForm) -> None:
    graph = onnx.load_from_string(to_qdq(network(), ranges, form).onnx).graph
    (last,) = (node for node in graph.node if "logits" in node.output)
    assert last.op_type == "Gemm"
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert not any("logits" in name for node in graph.node for name in node.input)


@pytest.mark.parametrize("form", FORMS)
def test_nodes_asked_for_stay_in_fp32(ranges: Ranges, form: QdqForm) -> None:
    quantized = to_qdq(network(), ranges, form, keep_fp32=["gemm", "conv2"])
    assert quantized.kept_fp32 == ("conv2", "gemm")
    kept, original = initializers(quantized.onnx), initializers(network())
    for name in ("conv2.weight", "conv2.bias", "gemm.weight"):
        assert np.array_equal(kept[name], original[name])
    assert "conv1.weight_quantized" in kept
    assert "conv1.weight" not in kept


def test_unknown_nodes_are_named(ranges: Ranges) -> None:
    with pytest.raises(BuildError, match="no node conv8, conv9") as raised:
        to_qdq(network(), ranges, QdqForm.ASYMMETRIC, keep_fp32=["conv9", "conv8"])
    assert raised.value.fix


def test_a_graph_with_nothing_left_to_quantise_is_refused(ranges: Ranges) -> None:
    names = [node.name for node in onnx.load_from_string(network()).graph.node]
    with pytest.raises(BuildError, match="nothing was quantised") as raised:
        to_qdq(network(), ranges, QdqForm.ASYMMETRIC, keep_fp32=names)
    assert "fp32 target" in raised.value.fix


def test_ranges_of_another_network_are_refused(ranges: Ranges) -> None:
    with pytest.raises(BuildError, match=r"lack conv4\.out") as raised:
        to_qdq(network(blocks=4), ranges, QdqForm.ASYMMETRIC)
    assert raised.value.fix


def test_an_opset_without_channels_is_refused() -> None:
    old = network(opset=12)
    with pytest.raises(BuildError, match="opset 12") as raised:
        to_qdq(old, calibrate_ranges(old, [images(2)]), QdqForm.ASYMMETRIC)
    assert "opset 18" in raised.value.fix


def test_unnamed_nodes_can_be_kept() -> None:
    limits = calibrate_ranges(tiny_model(), [images(8)])
    quantized = to_qdq(tiny_model(), limits, QdqForm.ASYMMETRIC, keep_fp32=["conv2"])
    assert quantized.kept_fp32 == ("conv2",)
    assert "w2" in initializers(quantized.onnx)


def test_the_same_twice_is_the_same(ranges: Ranges) -> None:
    first, second = (to_qdq(network(), ranges, QdqForm.ASYMMETRIC) for _ in range(2))
    assert first.onnx == second.onnx


@pytest.mark.parametrize("form", FORMS)
def test_sensitivity_finds_the_outlier_and_giving_it_up_helps(form: QdqForm) -> None:
    # between conv1 and conv2 one channel is 300 times as large as the others, which 8 bits
    # for all channels together cannot hold
    model = network(outlier=300.0)
    limits = calibrate_ranges(model, [images(32)])
    order = sensitivity(model, limits, form, images(7, seed=3))
    assert {name for name, _ in order} >= {"conv1", "conv2", "conv3", "gemm"}
    assert [error for _, error in order] == sorted((error for _, error in order), reverse=True)
    worst = order[0][0]
    assert worst in ("conv1", "conv2")
    assert order[0][1] > 3 * dict(order)["conv3"]
    both = to_qdq(model, limits, form, keep_fp32=["conv1", "conv2"])
    assert error(both.onnx, model) < error(to_qdq(model, limits, form).onnx, model) / 3


@pytest.mark.parametrize("handled", [True, False])
def test_it_prints_nothing_and_leaves_nothing(
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    handled: bool,
) -> None:
    root = logging.getLogger()
    if not handled:  # `logging.info` then sets a handler up, for good
        monkeypatch.setattr(root, "handlers", [])
    before = list(root.handlers), list(root.filters)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = network(shared=True)  # the quantiser would tell that it copies the shared bias
    limits = calibrate_ranges(model, [images(4)])
    with caplog.at_level(logging.DEBUG):
        to_qdq(model, limits, QdqForm.ASYMMETRIC)
    sensitivity(model, limits, QdqForm.SYMMETRIC, images(2))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert (list(root.handlers), list(root.filters)) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("isa", "form"),
    [
        (("avx2", "fma"), QdqForm.NARROW),
        (("avx2", "avx512f"), QdqForm.NARROW),
        (("avx2", "avx512_vnni", "avx512f"), QdqForm.ASYMMETRIC),
        (("avx2", "avx_vnni"), QdqForm.ASYMMETRIC),
        (("asimd", "asimddp"), QdqForm.ASYMMETRIC),
    ],
)
def test_weights_have_7_bits_where_8_would_saturate(
    isa: tuple[str, ...], form: QdqForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdq, "cpu_isa", lambda: isa)
    assert cpu_form() is form


def test_the_fallback_order_is_by_the_harm_on_a_few_images_with_ranges_of_all() -> None:
    batches = [images(8), images(ORDER_IMAGES, seed=2)]
    every = np.concatenate(batches)
    ranges = calibrate_ranges(network(), [every])
    for form in QdqForm:
        order = fallback_order(network(), batches, form)
        harm = sensitivity(network(), ranges, form, every[:ORDER_IMAGES])
        assert order == tuple(name for name, _ in harm)
