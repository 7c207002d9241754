"""Requests in, tensors out, without HTTP."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.fuzz_mutations import BYTES, mutate_json
from examples.serve.protocol import RequestError, answer, model_metadata, parse_request
from pipeline.bundle import Bundle
from pipeline.manifest import Manifest
from tests.targets.tiny_onnx import images

from .conftest import CLASSES, tensor

N = 3 * 8 * 8  # numbers of an image


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return Bundle.open(bundle).manifest


def body(document: Any) -> bytes:
    return json.dumps(document).encode()


def binary(document: dict[str, Any], blob: bytes, size: object = None) -> tuple[bytes, int]:
    """A body whose input follows its JSON."""
    (given,) = document["inputs"]
    given.pop("data", None)
    given["parameters"] = {"binary_data_size": len(blob) if size is None else size}
    head = body(document)
    return head + blob, len(head)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_json_flat_nested_and_binary_are_the_same_images(manifest: Manifest, n: int) -> None:
    given = images(n)
    flat = parse_request(body(tensor(given)), None, manifest)
    nested = parse_request(body(tensor(given, data=given.tolist())), None, manifest)
    packed = parse_request(*binary(tensor(given), given.tobytes()), manifest)
    for found in (flat, nested, packed):
        assert found.images.dtype == np.float32
        np.testing.assert_array_equal(found.images, given)


def test_pixels_are_normalised_as_in_training(manifest: Manifest) -> None:
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (manifest.mean, manifest.std))
    wanted = torch.from_numpy(pixels).float().sub_(mean * 255).div_(std * 255)
    document = tensor(pixels, datatype="UINT8")
    for found in (
        parse_request(body(document), None, manifest),
        parse_request(*binary(document, pixels.tobytes()), manifest),
    ):
        assert found.images.dtype == np.float32
        np.testing.assert_array_equal(found.images, wanted.numpy())


def changed(**changes: Any) -> Callable[[], tuple[bytes, int | None]]:
    return lambda: (body(tensor(images(1), **changes)), None)


def whole(document: Any, blob: bytes = b"", json_bytes: int | None = None) -> Any:
    return lambda: (
        (body(document) if not isinstance(document, bytes) else document) + blob,
        json_bytes,
    )


def outputs(*given: Any) -> Any:
    return whole({**tensor(images(1)), "outputs": list(given)})


REFUSED = {
    "no JSON": (whole(b"{"), "no valid JSON"),
    "no UTF-8": (whole(b'{"id": "\xff"}'), "no valid JSON"),
    "NaN": (whole(b'{"a": NaN}'), "NaN is no JSON number"),
    "too deep": (whole(b"[" * 100_000), "no valid JSON"),
    "a huge number": (whole(b'{"a": ' + b"1" * 10_000 + b"}"), "no valid JSON"),
    "a list": (whole([]), "the request is no JSON object"),
    "nothing": (whole({}), "inputs must be a list of one tensor"),
    "no input": (whole({"inputs": []}), "inputs must be a list of one tensor"),
    "two inputs": (whole({"inputs": [{}, {}]}), "inputs must be a list of one tensor"),
    "an input that is none": (whole({"inputs": [5]}), "inputs is no JSON object"),
    "an id": (whole({**tensor(images(1)), "id": 5}), "id is no text"),
    "parameters": (whole({**tensor(images(1)), "parameters": 5}), "parameters of the request"),
    "a flag": (
        whole({**tensor(images(1)), "parameters": {"binary_data_output": "no"}}),
        "binary_data_output is neither true nor false",
    ),
    "another name": (changed(name="images"), "must name 'input', not 'images'"),
    "no datatype": (changed(datatype=None), "datatype must be FP32 or UINT8, not None"),
    "a datatype": (changed(datatype="FP64"), "datatype must be FP32 or UINT8, not 'FP64'"),
    "a datatype that is none": (changed(datatype=["FP32"]), "datatype must be"),
    "no shape": (changed(shape=None), r"shape must be \[n, 3, 8, 8\], not None"),
    "three dimensions": (changed(shape=[3, 8, 8]), r"shape must be \[n, 3, 8, 8\]"),
    "another size": (changed(shape=[1, 3, 4, 16]), r"shape must be \[n, 3, 8, 8\]"),
    "no images": (changed(shape=[0, 3, 8, 8], data=[]), r"shape must be \[n, 3, 8, 8\]"),
    "a flag for a size": (changed(shape=[True, 3, 8, 8]), r"shape must be"),
    "more images than data": (changed(shape=[2, 3, 8, 8]), r"data has shape \[192\], not \[2"),
    "endless images": (changed(shape=[10**18, 3, 8, 8]), "data has shape"),
    "no data": (changed(data=None), "data is no list"),
    "a text": (changed(data="0" * N), "data is no list"),
    "texts": (changed(data=["0"] * N), "data is not of datatype FP32"),
    "flags": (changed(data=[True] * N), "data is not of datatype FP32"),
    "nulls": (changed(data=[None] * N), "data is not of datatype FP32"),
    "beyond 64 bits": (changed(data=[10**30] * N), "data is not of datatype FP32"),
    "infinite": (
        whole(body(tensor(images(1), data=["x"] * N)).replace(b'"x"', b"1e999")),
        "not finite",
    ),
    "beyond FP32": (changed(data=[1e300] * N), "not finite"),
    "ragged": (changed(data=[[1.0], [1.0, 2.0]]), "data is no tensor"),
    "deep": (changed(data=json.loads("[" * 70 + "]" * 70)), "data is no tensor|data has shape"),
    "transposed": (changed(data=np.zeros((1, 8, 8, 3)).tolist()), r"shape \[1, 8, 8, 3\]"),
    "fractions": (changed(datatype="UINT8"), "data is not of datatype UINT8"),
    "a dark pixel": (changed(datatype="UINT8", data=[-1] * N), "between 0 and 255"),
    "a bright pixel": (changed(datatype="UINT8", data=[256] * N), "between 0 and 255"),
    "data twice": (changed(parameters={"binary_data_size": 768}), "either data, or"),
    "shared memory": (
        whole({"inputs": [{"name": "input", "shape": [1, 3, 8, 8], "datatype": "FP32"}]}),
        "either data, or",
    ),
    "bytes that nobody claims": (
        whole(tensor(images(1)), b"12", len(body(tensor(images(1))))),
        "2 bytes follow the JSON",
    ),
    "a body that is cut": (whole(tensor(images(1)), b"", 10**6), "its JSON should have 1000000"),
    "few bytes": (lambda: binary(tensor(images(1)), b"\0" * 764), "is 768 bytes"),
    "a wrong size": (lambda: binary(tensor(images(1)), b"\0" * 768, 764), "is 768 bytes"),
    "a flag for bytes": (lambda: binary(tensor(images(1)), b"\0" * 768, True), "is 768 bytes"),
    "a text for bytes": (lambda: binary(tensor(images(1)), b"\0" * 768, "768"), "is 768 bytes"),
    "NaN bytes": (lambda: binary(tensor(images(1)), b"\xff" * 768), "not finite"),
    "another output": (outputs({"name": "logits"}), "must name 'output', not 'logits'"),
    "two outputs": (outputs({"name": "output"}, {"name": "output"}), "outputs must be a list of"),
    "outputs": (whole({**tensor(images(1)), "outputs": 5}), "outputs must be a list"),
    "six of five classes": (
        outputs({"name": "output", "parameters": {"classification": 6}}),
        "classification must lie between 0 and 5, not 6",
    ),
    "half a class": (
        outputs({"name": "output", "parameters": {"classification": 0.5}}),
        "classification must lie",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_named(manifest: Manifest, case: str) -> None:
    make, match = REFUSED[case]
    with pytest.raises(RequestError, match=match) as caught:
        parse_request(*make(), manifest)
    assert caught.value.status == 400
    assert "\n" not in str(caught.value)


def test_damaged_requests_are_read_or_refused(manifest: Manifest) -> None:
    rng = random.Random(0)
    document = {**tensor(images(1)), "id": "x", "parameters": {"binary_data_output": True}}
    document["outputs"] = [{"name": "output", "parameters": {"classification": 2}}]
    packed, length = binary(tensor(images(1)), images(1).tobytes())
    refused = 0
    for _ in range(400):
        mutation = rng.choice((*BYTES, mutate_json))
        if mutation is mutate_json or rng.random() < 0.5:
            damaged, json_bytes = mutation(rng, body(document)), None
        else:
            damaged, json_bytes = mutation(rng, packed), length
        try:
            found = parse_request(damaged, json_bytes, manifest)
        except RequestError:
            refused += 1
        else:
            assert found.images.shape[1:] == (3, 8, 8)
            assert np.isfinite(found.images).all()
    assert 100 < refused < 400


LOGITS = np.array([[0.5, -1.0, 2.25, 2.25, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]], np.float32)


def asked(**document: Any) -> bytes:
    return body({**tensor(images(2)), **document})


def test_logits_come_back_exactly(manifest: Manifest) -> None:
    request = parse_request(asked(id="17"), None, manifest)
    content, length = answer(request, LOGITS / 3, manifest)
    assert length is None
    found = json.loads(content)
    (output,) = found.pop("outputs")
    assert found == {"model_name": "tiny", "model_version": "1", "id": "17"}
    assert output.pop("data") == (LOGITS / 3).ravel().tolist()
    assert output == {"name": "output", "datatype": "FP32", "shape": [2, 5]}


@pytest.mark.parametrize(
    ("document", "is_binary"),
    [
        ({}, False),
        ({"outputs": []}, False),
        ({"outputs": [{"name": "output"}]}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({"outputs": [{"name": "output", "parameters": {"binary_data": True}}]}, True),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "output", "parameters": {"binary_data": False}}],
            },
            False,
        ),
    ],
)
def test_the_output_comes_in_the_form_that_was_asked_for(
    manifest: Manifest, document: dict[str, Any], is_binary: bool
) -> None:
    content, length = answer(parse_request(asked(**document), None, manifest), LOGITS, manifest)
    assert (length is not None) is is_binary
    (output,) = json.loads(content[:length])["outputs"]
    if is_binary:
        assert output["parameters"] == {"binary_data_size": len(content) - length}
        found = np.frombuffer(content[length:], "<f4").reshape(output["shape"])
        np.testing.assert_array_equal(found, LOGITS)
    else:
        assert output["data"] == LOGITS.ravel().tolist()


def test_the_best_classes_have_their_names(manifest: Manifest) -> None:
    wanted = ["2.250000:2:犬", "2.250000:3:a:b", "0.500000:0:cat"]
    wanted += ["5.000000:0:cat", "4.000000:1:chién", "3.000000:2:犬"]
    outputs = [{"name": "output", "parameters": {"classification": 3}}]
    content, _ = answer(parse_request(asked(outputs=outputs), None, manifest), LOGITS, manifest)
    (output,) = json.loads(content)["outputs"]
    assert output == {"name": "output", "datatype": "BYTES", "shape": [2, 3], "data": wanted}
    outputs[0]["parameters"] = {"classification": 3, "binary_data": True}
    content, length = answer(
        parse_request(asked(outputs=outputs), None, manifest), LOGITS, manifest
    )
    blob, found = content[length:], []
    while blob:
        end = 4 + int.from_bytes(blob[:4], "little")
        found.append(blob[4:end].decode())
        blob = blob[end:]
    assert found == wanted


def test_logits_that_are_no_numbers_are_the_servers_fault(manifest: Manifest) -> None:
    request = parse_request(asked(), None, manifest)
    with pytest.raises(RequestError, match="not finite") as caught:
        answer(request, np.full((2, 5), np.inf, np.float32), manifest)
    assert caught.value.status == 500


def test_the_model_says_what_its_images_are(manifest: Manifest) -> None:
    found = json.loads(json.dumps(model_metadata(manifest)))
    assert found["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    assert found["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 5]}]
    assert found["parameters"]["classes"] == list(CLASSES)
    assert found["parameters"]["mean"] == list(manifest.mean)
