"""OpenVINO on the CPU as all its targets share it: reading, compiling, running, and its errors."""

from __future__ import annotations

import functools
import importlib
import itertools
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from targets.base import Engine, Images, Logits
from targets.errors import BuildError, DeployError, EngineError
from targets.precision.reference import EXPORT_AGAIN
from targets.samples import Samples
from targets.signature import Port, Signature, check_signature

DEVICE = "CPU"
ROTATED_INPUTS = 3  # tensors that successive calls rotate over

_LAYERLESS = frozenset({"Const", "Input", "Output"})
# lines of OpenVINO's messages that name its own source files, or say nothing about the model
_NOISE = re.compile(
    r"Exception from |Check '|FrontEnd API failed|Model wasn't fully|Summary:|To facilitate|-- "
)
_UNKNOWN_OPERATORS = re.compile(r"No conversion rule found for operations: (.+)")
_BLAMED_NODE = re.compile(r"ONNX node '<Node\((\w+)\): (.*?)>'")


@functools.cache
def core() -> Any:
    """The one `openvino.Core` of this process."""
    return importlib.import_module("openvino").Core()


def device_property(name: str) -> Any:
    """A property of the CPU as OpenVINO sees it."""
    return core().get_property(DEVICE, name)


def version() -> str:
    """OpenVINO's version with its build, such as "2026.4.1-22982-e213a147257-releases/2026/4"."""
    return str(importlib.import_module("openvino").__version__)


@dataclass(frozen=True)
class Settings:
    """What every network is compiled with, and must come back with."""

    compute: str  # "f32" or "f16": the precision of all that is not int8
    threads: int

    def properties(self) -> dict[str, Any]:
        """The properties of `compile_model` and `import_model`."""
        return {
            "INFERENCE_PRECISION_HINT": self.compute,  # else bf16 where the CPU has it
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,  # all threads work on one call: latency, not throughput
            # a thread bound to a core that others use too waits for it while another is free;
            # which cores to use is for the affinity mask to say
            "ENABLE_CPU_PINNING": False,
            # else a mask of two siblings of one core gives one thread where two were asked for
            "ENABLE_HYPER_THREADING": True,
            # the other mode's only part here is the precision, which is given above
            "EXECUTION_MODE_HINT": "PERFORMANCE",
        }

    def require_given(self, compiled: Any, error: type[DeployError]) -> None:
        """`error` where OpenVINO silently gave something else than was asked for."""
        given = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if given != self.compute:
            raise error(
                f"asked for {self.compute}, OpenVINO would compute in {given}",
                fix="choose the target openvino-cpu",
            )
        threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        if threads != self.threads:
            raise error(
                f"asked for {self.threads} threads, OpenVINO gives {threads} on these CPUs",
                fix=f"choose --threads {threads}, or allow more CPUs (taskset)",
            )
        if "bf16" in kernels_by_precision(compiled):
            raise error("OpenVINO computes in bf16, unasked", fix="report this as a bug")


def compiled_model(model: Any, settings: Settings, error: type[DeployError]) -> Any:
    """An `ov.Model` compiled with exactly these settings."""
    with translated(error, "OpenVINO cannot compile the model"):
        compiled = core().compile_model(model, DEVICE, settings.properties())
        settings.require_given(compiled, error)
    return compiled


def imported_model(blob: bytes, settings: Settings, context: str) -> Any:
    """A compiled model from its blob, which remembers neither precision nor threads."""
    with translated(EngineError, context):
        compiled = core().import_model(blob, DEVICE, settings.properties())
        settings.require_given(compiled, EngineError)
    return compiled


def read_model(onnx: bytes) -> Any:
    """The `ov.Model` of an ONNX model; BuildError that names the node which OpenVINO refuses."""
    try:
        return core().read_model(onnx)
    except RuntimeError as refused:
        proto = importlib.import_module("onnx").load_from_string(onnx)
        raise BuildError(
            f"OpenVINO refused the model: {_blame(str(refused), proto)}", fix=EXPORT_AGAIN
        ) from refused


def representation(model: Any) -> tuple[bytes, bytes]:
    """`model.xml` and `model.bin` of an `ov.Model`; OpenVINO writes them to files only."""
    with tempfile.TemporaryDirectory() as folder:
        xml, weights = Path(folder) / "model.xml", Path(folder) / "model.bin"
        importlib.import_module("openvino").serialize(model, str(xml), str(weights))
        return xml.read_bytes(), weights.read_bytes()


def _blame(message: str, proto: Any) -> str:
    """What is wrong with which node; OpenVINO names only the operator that it lacks."""
    if found := _UNKNOWN_OPERATORS.search(message):
        lacking = {_operator(entry.strip()) for entry in found[1].split(",")}
        nodes = [node for node in proto.graph.node if node.op_type in lacking]
        if nodes:
            return "it has no " + ", no ".join(f"{n.op_type} (node {n.name!r})" for n in nodes)
    if blamed := _BLAMED_NODE.search(message):
        return f"node {blamed[2]!r} ({blamed[1]}): {useful_lines(message)}"
    return useful_lines(message)


def _operator(entry: str) -> str:
    """`Op` from "domain.Op-18"; domain and version may be missing."""
    return entry.rpartition(".")[2].partition("-")[0]


def useful_lines(message: str) -> str:
    """OpenVINO's message in one line, without the places in its source."""
    lines = [line.strip() for line in message.splitlines()]
    told = [line for line in lines if line and not _NOISE.match(line)]
    return " ".join(told) or " ".join(message.split())


def signature_of(model: Any, *, batch: int, error: type[DeployError]) -> Signature:
    """The signature of an `ov.Model` or a compiled one."""
    return check_signature(_ports(model.inputs), _ports(model.outputs), batch=batch, error=error)


def _ports(outputs: Sequence[Any]) -> list[Port]:
    float32 = importlib.import_module("openvino").Type.f32
    return [
        Port(min(port.names, default="?"), _sizes(port), port.get_element_type() == float32)
        for port in outputs
    ]


def _sizes(port: Any) -> tuple[int | None, ...]:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return (None,)
    return tuple(size.get_length() if size.is_static else None for size in shape)


def kernels_by_precision(compiled: Any, *layers: str) -> dict[str, int]:
    """How many layers' kernels compute in "f32", "bf16", "i8", ...; all layers, or these kinds.

    A kernel's name ends in its precision; the layer's own is that of its stored weights.
    """
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        layer = info["layerType"].astype(str)
        if layer in layers or (not layers and layer not in _LAYERLESS):
            found[info["primitiveType"].astype(str).rpartition("_")[2].lower()] += 1
    return dict(sorted(found.items()))


class OpenvinoEngine(Engine):
    """A compiled model with requests whose inputs and outputs are allocated in advance."""

    def __init__(self, compiled: Any, signature: Signature) -> None:
        self.input_shape = signature.input_shape
        with translated(EngineError, "cannot prepare the engine"):
            self._request = compiled.create_infer_request()
            self._calls: Iterator[Callable[[], object]] = itertools.cycle(
                _resident_calls(compiled, signature)
            )

    def infer_batch(self, images: Images) -> Logits:
        self._check_open()
        if images.shape != self.input_shape:
            raise EngineError(f"the engine takes images {self.input_shape}, not {images.shape}")
        with translated(EngineError, "the engine failed"):
            np.copyto(self._request.get_input_tensor().data, images)
            self._request.infer(share_outputs=True)
            return np.array(self._request.get_output_tensor().data, np.float32)

    def call(self) -> None:
        self._check_open()
        next(self._calls)()

    def time_ms(self, n: int) -> Samples:
        # translated out here: inside `call` it would be part of every timed call
        with translated(EngineError, "the engine failed"):
            return super().time_ms(n)

    def close(self) -> None:
        self._calls = itertools.cycle(())
        self._request = None

    def _check_open(self) -> None:
        if self._request is None:
            raise EngineError("the engine was closed")


def _resident_calls(compiled: Any, signature: Signature) -> list[Callable[[], object]]:
    """Synchronous inferences on a few random inputs.

    An asynchronous one, waited for, hands each call to another thread and back.
    """
    generator = np.random.default_rng(0)
    calls: list[Callable[[], object]] = []
    for _ in range(ROTATED_INPUTS):
        request = compiled.create_infer_request()
        images = generator.standard_normal(signature.input_shape, dtype=np.float32)
        np.copyto(request.get_input_tensor().data, images)
        calls.append(functools.partial(request.infer, share_outputs=True))
    return calls


@contextmanager
def translated(error: type[DeployError], context: str) -> Iterator[None]:
    """Turn OpenVINO's exceptions, plain RuntimeErrors of many lines, into `error` of one."""
    try:
        yield
    except RuntimeError as refused:
        fix = "build it again here: pipeline build" if error is EngineError else EXPORT_AGAIN
        raise error(f"{context}: {useful_lines(str(refused))}", fix=fix) from refused
