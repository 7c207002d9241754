"""A Triton model repository; `config.pbtxt` is made by Triton's own protobuf definitions."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

from pipeline.errors import DeployError
from targets.base import TritonServing

INPUT_NAME, OUTPUT_NAME = "input", "output"
CONFIG, LABELS, VERSION = "config.pbtxt", "labels.txt", "1"
INSTALL = "pip install 'wgates[triton]'"
WARMUP_REQUESTS = 10

# the name is also a folder and part of a URL
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def triton_repository(
    name: str,
    serving: TritonServing,
    *,
    input_shape: tuple[int, int, int, int],
    classes: tuple[str, ...],
    served: Mapping[str, bytes],
    instances: int = 1,
) -> dict[str, bytes]:
    """The files of the model `name`, by path in the repository: configuration, labels, engine."""
    config = triton_config(
        name, serving, input_shape=input_shape, classes=len(classes), instances=instances
    )
    return {
        f"{name}/{CONFIG}": config.encode("utf-8"),
        # for Triton's classification: a client may ask for the best classes by name
        f"{name}/{LABELS}": "".join(f"{label}\n" for label in classes).encode("utf-8"),
        **{f"{name}/{VERSION}/{file}": content for file, content in served.items()},
    }


def triton_config(
    name: str,
    serving: TritonServing,
    *,
    input_shape: tuple[int, int, int, int],
    classes: int,
    instances: int = 1,
) -> str:
    """The config.pbtxt that serves a graph (N, C, H, W) -> (N, classes).

    Its head says in words what who serves it must know; see `headed`.
    """
    if not _NAME.fullmatch(name):
        raise DeployError(
            f"{name!r} cannot name a Triton model", fix="use letters, digits, '_', '-' and '.'"
        )
    messages, text_format = _protobuf()
    config = messages.ModelConfig(
        name=name, backend=serving.backend, max_batch_size=serving.max_batch
    )
    _add_tensors(config, messages, serving, input_shape, classes)
    group = messages.ModelInstanceGroup
    kind = group.KIND_GPU if serving.on_gpu else group.KIND_CPU
    config.instance_group.add(count=instances, kind=kind)
    _add_optimisation(config, serving)
    shared = {key: str(value * instances) for key, value in serving.shared.items()}
    for key, value in {**serving.parameters, **shared}.items():
        config.parameters[key].string_value = value
    text = headed(str(text_format.MessageToString(config)), serving, batch=input_shape[0])
    parse_config(text)  # never write what cannot be read
    return text


def headed(text: str, serving: TritonServing, *, batch: int) -> str:
    """A config.pbtxt with its head of comments made anew: how requests are batched, what must be
    so where it is served, and where Triton computes otherwise than the verified engine."""
    images = "1 image" if batch == 1 else f"{batch} images"
    fixed = (
        f"every request holds exactly {images}: the engine's batch axis is fixed, so that Triton "
        "cannot put requests together (no dynamic batching); more instances answer side by side"
    )
    notes = (*(() if serving.max_batch else (fixed,)), *serving.needs, *serving.doubts)
    body = [line for line in text.rstrip("\n").split("\n") if not line.startswith("#")]
    return "\n".join([*(f"# {' '.join(note.split())}" for note in notes), *body, ""])


def parse_config(text: str) -> Any:
    """The ModelConfig message that Triton would read from `text`."""
    messages, text_format = _protobuf()
    try:
        return text_format.Parse(text, messages.ModelConfig())
    except text_format.ParseError as error:
        raise DeployError(
            f"config.pbtxt is no Triton configuration: {error}", fix="run: pipeline package RUN"
        ) from error


def _add_tensors(
    config: Any,
    messages: Any,
    serving: TritonServing,
    input_shape: tuple[int, int, int, int],
    classes: int,
) -> None:
    """Input, output and warm-up; with an open batch axis dims leave it out, else they hold it."""
    first = 1 if serving.max_batch else 0
    images, logits = input_shape[first:], (input_shape[0], classes)[first:]
    float32 = messages.TYPE_FP32
    config.input.add(name=INPUT_NAME, data_type=float32, dims=images)
    config.output.add(name=OUTPUT_NAME, data_type=float32, dims=logits, label_filename=LABELS)
    if serving.max_batch:
        config.dynamic_batching.SetInParent()  # whatever waits, at once
    sample = messages.ModelWarmup.Input(data_type=float32, dims=images, random_data=True)
    # a model without batching wants 1 here, whatever its dims
    warmup = config.model_warmup.add(
        name="random", batch_size=max(1, serving.max_batch), count=WARMUP_REQUESTS
    )
    warmup.inputs[INPUT_NAME].CopyFrom(sample)


def _add_optimisation(config: Any, serving: TritonServing) -> None:
    if serving.graph_level is not None:
        config.optimization.graph.level = serving.graph_level
    if serving.cuda_graphs:
        config.optimization.cuda.graphs = True
    if serving.accelerator:
        accelerators = config.optimization.execution_accelerators
        accelerators.gpu_execution_accelerator.add(
            name="cuda", parameters=dict(serving.accelerator)
        )


def _protobuf() -> tuple[Any, Any]:
    """Triton's message types, and protobuf's text form."""
    try:
        messages = importlib.import_module("tritonclient.grpc.model_config_pb2")
        text_format = importlib.import_module("google.protobuf.text_format")
    except ImportError as error:
        raise DeployError(
            f"a Triton repository needs tritonclient: {error}", fix=INSTALL
        ) from error
    return messages, text_format
