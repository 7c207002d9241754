"""Tensors of the KServe v2 protocol: JSON, Triton's binary form, Triton's classification."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import numpy as np

from pipeline.errors import DeployError
from pipeline.manifest import Manifest
from pipeline.triton import INPUT_NAME, OUTPUT_NAME
from targets.base import Images, Logits

VERSION = "1"  # a bundle is one version of one model
# "FP32": normalised, as the engine takes it; "UINT8": pixels of 0 to 255, normalised here
KINDS = {"FP32": ("<f4", "iuf"), "UINT8": ("u1", "iu")}  # datatype -> binary form, JSON's kinds


class RequestError(DeployError):
    """A request that the server refuses; `status` is the HTTP status of the answer."""

    def __init__(self, message: str, *, status: int = 400, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.status = status


@dataclass(frozen=True)
class InferRequest:
    """A request that was found sound."""

    images: Images  # (n, C, H, W), normalised
    id: str | None = None
    binary: bool = False  # the output as binary data, not as JSON
    top: int = 0  # so many classes with their names; 0: the logits


def parse_request(body: bytes, json_bytes: int | None, manifest: Manifest) -> InferRequest:
    """The request in an HTTP body whose first `json_bytes` are JSON (None: all of it)."""
    head, blob = _split(body, json_bytes)
    document = _object(_parsed(head), "the request")
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        _refuse("the request's id is no text")
    tensor = _only(document.get("inputs"), INPUT_NAME, "inputs")
    images = _images(tensor, blob, manifest)
    parameters = _parameters(document, "the request")
    binary, top = _output(document, manifest, _flag(parameters, "binary_data_output", False))
    return InferRequest(images, identity, binary, top)


def answer(request: InferRequest, logits: Logits, manifest: Manifest) -> tuple[bytes, int | None]:
    """The HTTP body for (n, classes) logits, and how much of it is JSON (None: all of it)."""
    if not np.isfinite(logits).all():
        raise RequestError("the engine's logits are not finite", status=500)
    output: dict[str, Any] = {"name": OUTPUT_NAME}
    if request.top:
        texts = _classified(logits, request.top, manifest.classes)
        output |= {"datatype": "BYTES", "shape": [len(logits), request.top]}
        blob = b"".join(len(t).to_bytes(4, "little") + t for t in map(str.encode, texts))
        data: list[Any] = texts
    else:
        output |= {"datatype": "FP32", "shape": list(logits.shape)}
        blob, data = logits.astype("<f4").tobytes(), []
    document = {"model_name": manifest.name, "model_version": VERSION, "outputs": [output]}
    if request.id is not None:
        document["id"] = request.id
    if request.binary:
        output["parameters"] = {"binary_data_size": len(blob)}
        head = json.dumps(document).encode()
        return head + blob, len(head)
    output["data"] = data or logits.ravel().tolist()
    return json.dumps(document).encode(), None


def model_metadata(manifest: Manifest) -> dict[str, Any]:
    """What the protocol says of a model, and in `parameters` what a client of images needs."""
    return {
        "name": manifest.name,
        "versions": [VERSION],
        "platform": f"wgates_{manifest.target}",
        "inputs": [_port(INPUT_NAME, manifest.input_shape[1:])],
        "outputs": [_port(OUTPUT_NAME, (len(manifest.classes),))],
        "parameters": {
            "mean": manifest.mean,
            "std": manifest.std,
            "classes": manifest.classes,
            "batch": manifest.batch,
            "normalisation": "FP32 input: (pixel / 255 - mean) / std of each channel; UINT8 input: "
            "pixels of 0 to 255, normalised by the server",
        },
    }


def _port(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": [-1, *shape]}


def _refuse(message: str) -> NoReturn:
    raise RequestError(message)


# requests ---------------------------------------------------------------------------------


def _split(body: bytes, json_bytes: int | None) -> tuple[bytes, bytes]:
    if json_bytes is None:
        return body, b""
    if json_bytes > len(body):
        _refuse(f"the body has {len(body)} bytes, its JSON should have {json_bytes}")
    return body[:json_bytes], body[json_bytes:]


def _parsed(head: bytes) -> Any:
    try:
        return json.loads(head.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request is no valid JSON: {error}") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        _refuse(f"{what} is no JSON object")
    return cast("Mapping[str, Any]", value)


def _parameters(holder: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    return _object(holder.get("parameters", {}), f"the parameters of {what}")


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        _refuse(f"{name} is neither true nor false")
    return value


def _only(tensors: Any, name: str, what: str) -> Mapping[str, Any]:
    """The one tensor that the model has."""
    if not isinstance(tensors, list) or len(tensors) != 1:
        _refuse(f"{what} must be a list of one tensor, {name!r}")
    tensor = _object(tensors[0], what)
    if tensor.get("name") != name:
        _refuse(f"{what} must name {name!r}, not {tensor.get('name')!r}")
    return tensor


def _images(tensor: Mapping[str, Any], blob: bytes, manifest: Manifest) -> Images:
    """(n, C, H, W) images, normalised."""
    shape, kind = _shape(tensor.get("shape"), manifest), tensor.get("datatype")
    if not isinstance(kind, str) or kind not in KINDS:
        _refuse(f"datatype must be {' or '.join(KINDS)}, not {kind!r}")
    size = _parameters(tensor, "the input").get("binary_data_size")
    if ("data" in tensor) == (size is not None):
        _refuse("the input needs either data, or the parameter binary_data_size")
    if size is None:
        if blob:
            _refuse(f"{len(blob)} bytes follow the JSON, and no input claims them")
        values = _listed(tensor["data"], shape, kind)
    else:
        values = _binary(blob, size, shape, kind)
    if kind == "UINT8":
        return _normalised(values, manifest)
    if not np.isfinite(values).all():
        _refuse("the input holds numbers that are not finite")
    images: Images = values
    return images


def _shape(shape: Any, manifest: Manifest) -> tuple[int, ...]:
    wanted = manifest.input_shape[1:]
    is_counts = isinstance(shape, list) and all(type(one) is int and one > 0 for one in shape)
    if not is_counts or len(shape) != 4 or tuple(shape[1:]) != wanted:
        _refuse(f"shape must be [n, {', '.join(map(str, wanted))}], not {shape!r}")
    return tuple(shape)


def _listed(data: Any, shape: tuple[int, ...], kind: str) -> Any:
    """Numbers from JSON, flat or nested as `shape` is."""
    if not isinstance(data, list):
        _refuse("data is no list")
    try:
        values = np.array(data)
    except ValueError as error:  # lists of unlike length, or nested too deep
        raise RequestError(f"data is no tensor: {error}") from error
    form, kinds = KINDS[kind]
    if values.dtype.kind not in kinds:
        _refuse(f"data is not of datatype {kind}")
    if values.shape not in (shape, (math.prod(shape),)):
        _refuse(f"data has shape {list(values.shape)}, not {list(shape)}")
    if kind == "UINT8" and not 0 <= values.min() <= values.max() <= 255:
        _refuse("UINT8 numbers lie between 0 and 255")
    with np.errstate(over="ignore"):  # too large for FP32 is infinite, and refused as that
        return values.astype(form).reshape(shape)


def _binary(blob: bytes, size: Any, shape: tuple[int, ...], kind: str) -> Any:
    """Numbers in row-major order, little-endian."""
    form = np.dtype(KINDS[kind][0])
    wanted = math.prod(shape) * form.itemsize
    if type(size) is not int or size != wanted or len(blob) != wanted:
        _refuse(
            f"{kind} of shape {list(shape)} is {wanted} bytes; binary_data_size says {size!r}, "
            f"and {len(blob)} bytes follow the JSON"
        )
    return np.frombuffer(blob, form).reshape(shape)


def _normalised(pixels: Any, manifest: Manifest) -> Images:
    """As in training: mean and std are in units of 0..1 pixels."""
    mean, std = (np.array(each, np.float32) * 255 for each in (manifest.mean, manifest.std))
    per_channel = (1, -1, 1, 1)
    images: Images = (pixels.astype(np.float32) - mean.reshape(per_channel)) / std.reshape(
        per_channel
    )
    return images


# outputs ----------------------------------------------------------------------------------


def _output(document: Mapping[str, Any], manifest: Manifest, binary: bool) -> tuple[bool, int]:
    """Whether the output is to be binary, and how many classes are asked for."""
    if not document.get("outputs"):
        return binary, 0
    output = _only(document["outputs"], OUTPUT_NAME, "outputs")
    parameters = _parameters(output, "the output")
    top = parameters.get("classification", 0)
    if type(top) is not int or not 0 <= top <= len(manifest.classes):
        _refuse(f"classification must lie between 0 and {len(manifest.classes)}, not {top!r}")
    return _flag(parameters, "binary_data", binary), top


def _classified(logits: Logits, top: int, classes: tuple[str, ...]) -> list[str]:
    """ "value:index:name" of the `top` largest logits of each image, row after row."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    return [
        f"{row[index]:f}:{index}:{classes[index]}"
        for row, best in zip(logits, order, strict=True)
        for index in best
    ]
