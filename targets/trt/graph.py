"""The typed ONNX graph that a TensorRT builder gets: the graph alone decides the precision."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from targets.base import Images, Precision
from targets.errors import BuildError
from targets.precision.half import to_fp16
from targets.precision.qdq import QdqForm, calibrate_ranges, fallback_order, to_qdq
from targets.precision.reference import parsed, require_nodes
from targets.signature import Port, Signature, check_signature

PARITY_IMAGES = 32  # on which fp16 is held against fp32


@dataclass(frozen=True)
class TypedModel:
    """A graph with its precision written into it."""

    onnx: bytes
    signature: Signature
    has_dynamic_batch: bool  # the first dimension of input and output is not fixed
    kept_fp32: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What an engine is to be: how it computes, for how many images, from which ones."""

    precision: Precision
    batch: int
    batches: Iterable[Images] = ()
    keep_fp32: Collection[str] = ()


def typed_model(onnx: bytes, request: Request) -> TypedModel:
    """The float32 graph checked, named throughout, and converted to the requested precision."""
    # TensorRT's parser takes garbage for an empty network, so nothing reaches it unchecked
    model, signature, batch_name = _fixed(onnx, request.batch)
    typed = _converted(model, signature, request)
    content = _freed(typed.onnx, batch_name) if batch_name else typed.onnx
    return TypedModel(content, signature, bool(batch_name), typed.kept_fp32, typed.facts)


def int8_fallback_order(onnx: bytes, request: Request) -> tuple[str, ...]:
    """Nodes by the harm that their 8 bits do, worst first."""
    model, *_ = _fixed(onnx, request.batch)
    return fallback_order(model.SerializeToString(), list(request.batches), QdqForm.SYMMETRIC)


def _fixed(onnx: bytes, batch: int) -> tuple[Any, Signature, str]:
    """The ModelProto with a fixed batch, its signature, and the name that the batch had, or ""."""
    model = parsed(onnx)
    name = _batch_name(model)
    if name:
        _set_batch(model, batch)
    signature = check_signature(
        [_port(value) for value in _inputs(model)],
        [_port(value) for value in model.graph.output],
        batch=batch,
        error=BuildError,
    )
    return model, signature, name


def _freed(onnx: bytes, name: str) -> bytes:
    """The same graph with a batch of any size, called `name`."""
    model = importlib.import_module("onnx").load_from_string(onnx)
    _set_batch(model, name)
    return bytes(model.SerializeToString())


def _converted(model: Any, signature: Signature, request: Request) -> TypedModel:
    content, keep = model.SerializeToString(), request.keep_fp32
    if request.precision == "fp16":
        images = _some(request.batches, signature)
        half = to_fp16(content, images, keep_fp32=keep)
        facts = {"fp16_error": half.error, "fp16_images": len(images)}
        return TypedModel(half.onnx, signature, False, half.kept_fp32, facts)
    if request.precision == "int8":
        # what is not int8 stays fp32, not fp16: a node that falls back must lose nothing more,
        # and the names in `kept_fp32` must be true
        ranges = calibrate_ranges(content, request.batches)
        quantized = to_qdq(content, ranges, QdqForm.SYMMETRIC, keep_fp32=keep)
        return TypedModel(quantized.onnx, signature, False, quantized.kept_fp32, quantized.facts)
    require_nodes(model, keep)
    return TypedModel(content, signature, False)


def _some(batches: Iterable[Images], signature: Signature) -> Images:
    """Up to 32 of the images (n, C, H, W); n may be 0."""
    kept: list[Images] = [np.empty((0, *signature.input_shape[1:]), np.float32)]
    for batch in batches:
        kept.append(batch)
        if sum(map(len, kept)) >= PARITY_IMAGES:
            break
    return np.concatenate(kept)[:PARITY_IMAGES]


def _inputs(model: Any) -> list[Any]:
    weights = {weight.name for weight in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _port(value: Any) -> Port:
    tensor = value.type.tensor_type
    shape = tuple(size.dim_value or size.dim_param or None for size in tensor.shape.dim)
    return Port(
        value.name, shape, tensor.elem_type == importlib.import_module("onnx").TensorProto.FLOAT
    )


def _batch_name(model: Any) -> str:
    """What the input's batch is called where its size is not fixed, else ""."""
    sizes = [value.type.tensor_type.shape.dim for value in _inputs(model)]
    if not sizes or not sizes[0] or sizes[0][0].dim_value > 0:
        return ""
    return sizes[0][0].dim_param or "batch"


def _set_batch(model: Any, batch: int | str) -> None:
    """Give the input and the output this batch; sizes inferred from the former one are dropped."""
    del model.graph.value_info[:]
    for value in (*_inputs(model), *model.graph.output):
        for size in value.type.tensor_type.shape.dim[:1]:
            if isinstance(batch, str):
                size.dim_param = batch
            else:
                size.dim_value = batch
