"""`config.pbtxt` of a Triton model repository, from Triton's own protobuf definitions."""

from __future__ import annotations

import importlib
import re
from typing import Any

from pipeline.errors import DeployError

INPUT_NAME, OUTPUT_NAME = "input", "output"
INSTALL = "pip install 'wgates[triton]'"
WARMUP_REQUESTS = 10

# the name is also a folder and part of a URL
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

# what `level` means to Triton's onnxruntime backend: -1 basic, 1 extended, 2 none, else all
_OPTIMISE_ALL, _OPTIMISE_NOTHING = 0, 2


def triton_config(
    name: str,
    *,
    input_shape: tuple[int, int, int, int],
    classes: int,
    batch: int,
    threads: int,
    optimised: bool = True,
) -> str:
    """The config.pbtxt that serves a static graph (N, C, H, W) -> (N, classes) on the CPU.

    `optimised`: `model.onnx` is the verified engine, whose graph must run as it is.
    """
    if not _NAME.fullmatch(name):
        raise DeployError(
            f"{name!r} cannot name a Triton model", fix="use letters, digits, '_', '-' and '.'"
        )
    if batch != input_shape[0]:
        raise ValueError(f"batch {batch} does not fit the input shape {input_shape}")
    messages, text_format = _protobuf()
    config = messages.ModelConfig(name=name, backend="onnxruntime", max_batch_size=0)
    float32 = messages.TYPE_FP32
    # max_batch_size 0: the graph is static, so its dims include the batch
    config.input.add(name=INPUT_NAME, data_type=float32, dims=input_shape)
    config.output.add(name=OUTPUT_NAME, data_type=float32, dims=(batch, classes))
    config.instance_group.add(count=1, kind=messages.ModelInstanceGroup.KIND_CPU)
    config.optimization.graph.level = _OPTIMISE_NOTHING if optimised else _OPTIMISE_ALL
    for key, count in (("intra_op_thread_count", threads), ("inter_op_thread_count", 1)):
        config.parameters[key].string_value = str(count)
    warmup = config.model_warmup.add(name="random", batch_size=1, count=WARMUP_REQUESTS)
    warmup.inputs[INPUT_NAME].CopyFrom(
        messages.ModelWarmup.Input(data_type=float32, dims=input_shape, random_data=True)
    )
    return str(text_format.MessageToString(config))


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
