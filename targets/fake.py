"""A target without a runtime, whose latency is a known function of the layers' widths.

Every machine can test the whole pipeline with it, in no time and with a known right answer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.reference import ReferenceEvaluator

from targets.base import BuildRecord, Engine, Images, Logits, Precision, Target, TargetOptions
from targets.errors import BuildError, EngineError
from targets.files import REBUILD, write_whole
from targets.fingerprint import Fingerprint
from targets.samples import Samples
from targets.signature import Port, Signature, check_signature

OVERHEAD_NS = 50_000  # of a call, whatever the network
MACS_PER_NS = 20.0
CHANNEL_BLOCK = 8
EXPORT = "export the network again"
MOST_NS = 1e15
FORMAT = "wgates-fake-engine-1"

_Shapes = dict[str, tuple[int | None, ...]]


class FakeTarget(Target):
    """`fake`: OVERHEAD_NS + MACs / MACS_PER_NS, with channels rounded up to CHANNEL_BLOCK.

    `noise` is the standard deviation of log latency; `seed` makes it repeatable.
    """

    name = "fake"
    precision: Precision = "fp32"
    engine_suffix = ".json"
    channel_multiple = CHANNEL_BLOCK
    channel_block = CHANNEL_BLOCK

    def __init__(self, options: TargetOptions, *, noise: float = 0.0, seed: int = 0) -> None:
        super().__init__(options)
        self.noise = noise
        self._generator = np.random.default_rng(seed)  # shared, so that no two engines repeat it

    def is_available(self) -> tuple[str, ...]:
        return ()

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            target=self.name,
            precision=self.precision,
            device="none",
            runtime="fake 1",
            driver="",
            batch=self.options.batch,
            threads=self.options.thread_count,
            affinity=0,
            settings=(f"noise={self.noise:g}",),
            isa=(),
            cgroup_quota=None,
            clocks="",
        )

    def build(
        self,
        onnx: bytes | Path,
        out: Path,
        batches: Iterable[Images] = (),
        *,
        keep_fp32: Collection[str] = (),
    ) -> BuildRecord:
        model = _checked(onnx if isinstance(onnx, bytes) else onnx.read_bytes())
        signature_of(model, self.options.batch)
        _check_operators(model)
        serialised = model.SerializeToString(deterministic=True)
        record = {
            "format": FORMAT,
            "latency_ns": latency_ns(model),
            "sha256": hashlib.sha256(serialised).hexdigest(),
            "onnx": base64.b64encode(serialised).decode(),
        }
        write_whole(out, json.dumps(record, indent=1).encode())
        return BuildRecord(out)

    def load(self, engine: Path) -> Engine:
        try:
            record = json.loads(engine.read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise ValueError(f"its format is {record['format']!r}")
            serialised = base64.b64decode(record["onnx"], validate=True)
            if hashlib.sha256(serialised).hexdigest() != record["sha256"]:
                raise ValueError("its checksum differs")
            latency = float(record["latency_ns"])
            if not 0 < latency < MOST_NS:
                raise ValueError(f"its latency is {latency} ns")
        except (
            OSError,
            ValueError,
            ArithmeticError,
            LookupError,
            TypeError,
            RecursionError,
        ) as error:
            raise EngineError(f"{engine} is no fake engine: {error}", fix=REBUILD) from error
        return FakeEngine(_checked(serialised, EngineError), latency, self)

    def noisy_ns(self, latency_ns: float, n: int) -> list[int]:
        """`n` draws of the latency with this target's noise, in whole ns."""
        draws = latency_ns * np.exp(self.noise * self._generator.standard_normal(n))
        return [max(1, round(draw)) for draw in draws]


class FakeEngine(Engine):
    """Answers with the known latency at once; computes logits by ONNX's slow reference."""

    def __init__(self, model: onnx.ModelProto, latency_ns: float, target: FakeTarget) -> None:
        signature = signature_of(model, target.options.batch, error=EngineError)
        self.input_shape = signature.input_shape
        self._input_name = signature.input_name
        self._latency_ns = latency_ns
        self._target = target
        with _reference_faults_told():
            self._evaluator: ReferenceEvaluator | None = ReferenceEvaluator(model)

    def infer_batch(self, images: Images) -> Logits:
        if self._evaluator is None:
            raise EngineError("the engine was closed")
        with _reference_faults_told():
            (logits,) = self._evaluator.run(None, {self._input_name: images})
        return np.asarray(logits, dtype=np.float32)

    def call(self) -> None:
        """Nothing to wait for: `time_ms` knows the answer."""
        if self._evaluator is None:
            raise EngineError("the engine was closed")

    def time_ms(self, n: int) -> Samples:
        self.call()
        wall_ns = self._target.noisy_ns(self._latency_ns, n)
        return Samples(np.array(wall_ns), np.array(wall_ns), np.zeros(n, np.int64))

    def close(self) -> None:
        self._evaluator = None


def latency_ns(model: onnx.ModelProto) -> float:
    """The known latency of one call: OVERHEAD_NS + padded MACs / MACS_PER_NS."""
    shapes = _shapes_of(model)
    return OVERHEAD_NS + sum(_padded_macs(node, shapes) for node in model.graph.node) / MACS_PER_NS


def signature_of(
    model: onnx.ModelProto, batch: int, *, error: type[BuildError | EngineError] = BuildError
) -> Signature:
    """Input and output of a model; `error` if a target cannot take them."""
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [_port(value) for value in model.graph.input if value.name not in weights]
    outputs = [_port(value) for value in model.graph.output]
    return check_signature(inputs, outputs, batch=batch, error=error)


@contextmanager
def _reference_faults_told() -> Iterator[None]:
    """ONNX's reference checks little itself: it fails wherever NumPy does."""
    try:
        yield
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as e:
        raise EngineError(f"ONNX's reference cannot run the model: {e}", fix=EXPORT) from e


def _checked(
    serialised: bytes, error: type[BuildError | EngineError] = BuildError
) -> onnx.ModelProto:
    try:
        model = onnx.load_from_string(serialised)
        onnx.checker.check_model(model)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except (
        DecodeError,
        UnicodeDecodeError,  # of the checker's own message, when it quotes the model
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as e:
        message = " ".join(str(e).split())
        raise error(f"this is no valid ONNX model: {message}", fix=EXPORT) from e


def _check_operators(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise BuildError(f"node {node.name} has the operator {node.domain}.{node.op_type}")


def _port(value: onnx.ValueInfoProto) -> Port:
    is_float32 = value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    return Port(value.name, _dims(value), is_float32)


def _dims(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    sizes = value.type.tensor_type.shape.dim
    return tuple(size.dim_value if size.HasField("dim_value") else None for size in sizes)


def _shapes_of(model: onnx.ModelProto) -> _Shapes:
    graph = model.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes: _Shapes = {value.name: _dims(value) for value in values}
    return shapes | {weight.name: tuple(weight.dims) for weight in graph.initializer}


def _padded_macs(node: onnx.NodeProto, shapes: _Shapes) -> int:
    """Multiply-adds of one node with its channels rounded up; 0 for all but Conv, Gemm, MatMul."""
    attributes: dict[str, Any] = {
        a.name: onnx.helper.get_attribute_value(a) for a in node.attribute
    }
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return 0
    out = _known(node.output[0], shapes)
    weight = _known(node.input[1], shapes)
    if node.op_type == "Conv":
        # a group's own inputs (1 in a depthwise conv) are not padded
        inputs = weight[1] if attributes.get("group", 1) > 1 else _blocks(weight[1])
        return out[0] * _blocks(out[1]) * math.prod(out[2:]) * inputs * math.prod(weight[2:])
    inputs = weight[-1] if attributes.get("transB", 0) else weight[-2]
    return math.prod(out[:-1]) * _blocks(out[-1]) * _blocks(inputs)


def _known(name: str, shapes: _Shapes) -> tuple[int, ...]:
    sizes = tuple(size for size in shapes.get(name, (None,)) if size is not None)
    if len(sizes) != len(shapes.get(name, (None,))):
        raise BuildError(f"the shape of {name} is not known", fix="export with static shapes")
    return sizes


def _blocks(channels: int) -> int:
    return -(-channels // CHANNEL_BLOCK) * CHANNEL_BLOCK
