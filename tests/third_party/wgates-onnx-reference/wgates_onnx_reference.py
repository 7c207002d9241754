"""ONNX's reference evaluator as a target: slow, but right, and a model of a target of your own.

The engine is the checked ONNX model behind a seal.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import onnx as onnx_format
from google.protobuf.message import DecodeError
from onnx.reference import ReferenceEvaluator

from targets.base import BuildRecord, Engine, Images, Logits, Precision, Target
from targets.errors import BuildError, EngineError
from targets.fake import signature_of
from targets.fingerprint import Fingerprint, cpu_fingerprint
from targets.signature import Signature

MAGIC = b"wgates-onnx-reference-1\n"
DIGEST_BYTES = 32
OTHER_RUNTIME = "choose a target whose runtime has it: pipeline targets"


class OnnxReference(Target):
    """`onnx-reference`: the reference evaluator of the onnx package, fp32."""

    name = "onnx-reference"
    precision: Precision = "fp32"
    engine_suffix = ".reference"
    channel_multiple = 8
    channel_block = 1
    packages = ("onnx",)
    install = "pip install wgates-onnx-reference"

    def is_available(self) -> tuple[str, ...]:
        return ()  # this module could not have been imported without its runtime

    def fingerprint(self) -> Fingerprint:
        return cpu_fingerprint(
            self.name,
            self.precision,
            runtime=f"onnx {importlib.metadata.version('onnx')}",
            batch=self.options.batch,
            threads=self.options.thread_count,
            settings=("interval=host end-to-end",),
        )

    def build(
        self,
        onnx: bytes | Path,
        out: Path,
        batches: Iterable[Images] = (),
        *,
        keep_fp32: Collection[str] = (),
    ) -> BuildRecord:
        model = onnx if isinstance(onnx, bytes) else onnx.read_bytes()
        try:
            graph = onnx_format.load_from_string(model)
            onnx_format.checker.check_model(graph)
        except (DecodeError, onnx_format.checker.ValidationError) as error:
            raise BuildError(f"this is no valid ONNX model: {error}") from error
        for node in graph.graph.node:
            if node.domain not in ("", "ai.onnx"):
                what = f"node {node.name}: no operator {node.domain}.{node.op_type}"
                raise BuildError(what, fix=OTHER_RUNTIME)
        signature_of(graph, self.options.batch)
        partial = out.with_name(f".{out.name}.partial")
        partial.write_bytes(MAGIC + hashlib.sha256(model).digest() + model)
        partial.replace(out)  # never half an engine under its final name
        return BuildRecord(out)

    def load(self, engine: Path) -> Engine:
        content = engine.read_bytes()
        start = len(MAGIC) + DIGEST_BYTES
        digest, model = content[len(MAGIC) : start], content[start:]
        # the digest first: nothing is parsed before it agrees
        if not content.startswith(MAGIC) or hashlib.sha256(model).digest() != digest:
            fix = "build it again: pipeline build"
            raise EngineError(f"{engine} was not built by {self.name}, or is cut short", fix=fix)
        graph = onnx_format.load_from_string(model)
        signature = signature_of(graph, self.options.batch, error=EngineError)
        return ReferenceEngine(ReferenceEvaluator(graph), signature)


class ReferenceEngine(Engine):
    """An evaluator with its input at hand, so that `call` times the network only."""

    def __init__(self, evaluator: ReferenceEvaluator, signature: Signature) -> None:
        self.input_shape = signature.input_shape
        self._name = signature.input_name
        self._evaluator: ReferenceEvaluator | None = evaluator
        self._resident = np.ones(self.input_shape, np.float32)

    def infer_batch(self, images: Images) -> Logits:
        if self._evaluator is None:
            raise EngineError("the engine was closed")
        (logits,) = self._evaluator.run(None, {self._name: images})
        return np.asarray(logits, dtype=np.float32)

    def call(self) -> None:
        self.infer_batch(self._resident)  # returns when the result is there

    def close(self) -> None:
        self._evaluator = None
