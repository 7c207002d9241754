"""`config.pbtxt` of a Triton model repository, from Triton's own protobuf definitions."""

from __future__ import annotations

import importlib
import re
from typing import Any

from pipeline.errors import DeployError
from targets.base import TritonServing

INPUT_NAME, OUTPUT_NAME = "input", "output"
INSTALL = "pip install 'wgates[triton]'"
WARMUP_REQUESTS = 10

# the name is also a folder and part of a URL
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def triton_config(
    name: str, serving: TritonServing, *, input_shape: tuple[int, int, int, int], classes: int
) -> str:
    """The config.pbtxt that serves a static graph (N, C, H, W) -> (N, classes).

    Where the server computes otherwise than the verified engine, its first lines say so.
    """
    if not _NAME.fullmatch(name):
        raise DeployError(
            f"{name!r} cannot name a Triton model", fix="use letters, digits, '_', '-' and '.'"
        )
    messages, text_format = _protobuf()
    config = messages.ModelConfig(name=name, backend=serving.backend, max_batch_size=0)
    float32 = messages.TYPE_FP32
    # max_batch_size 0: the graph is static, so its dims include the batch
    config.input.add(name=INPUT_NAME, data_type=float32, dims=input_shape)
    config.output.add(name=OUTPUT_NAME, data_type=float32, dims=(input_shape[0], classes))
    group = messages.ModelInstanceGroup
    config.instance_group.add(count=1, kind=group.KIND_GPU if serving.on_gpu else group.KIND_CPU)
    if serving.graph_level is not None:
        config.optimization.graph.level = serving.graph_level
    for key, value in serving.parameters.items():
        config.parameters[key].string_value = value
    warmup = config.model_warmup.add(name="random", batch_size=1, count=WARMUP_REQUESTS)
    warmup.inputs[INPUT_NAME].CopyFrom(
        messages.ModelWarmup.Input(data_type=float32, dims=input_shape, random_data=True)
    )
    doubts = "".join(f"# {doubt}\n" for doubt in serving.doubts)
    return doubts + str(text_format.MessageToString(config))


def parse_config(text: str) -> Any:
    """The ModelConfig message that Triton would read from `text`."""
    messages, text_format = _protobuf()
    try:
        return text_format.Parse(text, messages.ModelConfig())
    except text_format.ParseError as error:
        raise DeployError(
            f"config.pbtxt is no Triton configuration: {error}", fix="run: pipeline package RUN"
        ) from error


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
