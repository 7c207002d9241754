"""A network as ONNX Runtime's CPU provider computes it: what lower precisions are held against."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from targets.base import Images, Logits
from targets.errors import BuildError
from targets.ort.session import NOT_ASKED_FOR, ports, refusals, translated
from targets.precision.folding import without_batch_norm
from targets.signature import Signature, check_signature

EXPORT_AGAIN = "export the network again: pipeline export"
CHECK_WEIGHTS = "check its weights and the normalisation of the images"
INSTALL = "pip install 'wgates[ort-cpu]'"


def read_onnx(onnx: bytes | Path) -> bytes:
    """The model in one piece, weights of external files included; BuildError if unreadable."""
    if isinstance(onnx, bytes):
        return onnx
    reader = importlib.import_module("onnx")
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    try:
        return bytes(reader.load(str(onnx)).SerializeToString())
    except (OSError, decode_error, reader.checker.ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        words = reason or " ".join(str(error).split())
        raise BuildError(f"cannot read {onnx}: {words}", fix=EXPORT_AGAIN) from error


def parsed(serialised: bytes) -> Any:
    """The ModelProto with tensor types inferred, batch norm folded, and every node named.

    A node without a name, or with that of an earlier one, is called after its first output.
    """
    onnx = importlib.import_module("onnx")
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    try:
        model = onnx.load_from_string(serialised)
        onnx.checker.check_model(model)
        model = onnx.shape_inference.infer_shapes(model)
    except (decode_error, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        reason = " ".join(str(e).split())
        raise BuildError(f"this is no valid ONNX model: {reason}", fix=EXPORT_AGAIN) from e
    _name_nodes(model.graph.node)
    folded = without_batch_norm(model)
    return model if folded is model else onnx.shape_inference.infer_shapes(folded)


def _name_nodes(nodes: Iterable[Any]) -> None:
    taken: set[str] = set()
    for node in nodes:
        if not node.name or node.name in taken:
            node.name = next(name for name in _candidates(node) if name not in taken)
        taken.add(node.name)


def _candidates(node: Any) -> Iterator[str]:
    stem = node.output[0] if node.output and node.output[0] else node.op_type
    yield stem
    yield from (f"{stem}.{number}" for number in range(2, 1_000_000))


def node_names(model: Any) -> tuple[str, ...]:
    """Names of all nodes in graph order."""
    return tuple(node.name for node in model.graph.node)


def require_nodes(model: Any, names: Collection[str]) -> None:
    """BuildError that lists those of `names` which no node of the model has."""
    if unknown := sorted(set(names) - set(node_names(model))):
        listed = ", ".join(unknown)
        raise BuildError(
            f"the model has no node {listed} to keep in fp32", fix="name nodes of this very model"
        )


class Runner:
    """A session over one thread, for any number of images and all of the graph's outputs."""

    def __init__(self, model: Any, *, optimised: bool = True, watched: int = 0) -> None:
        """`watched` outputs at the end are no logits but values to look at."""
        runtime = cpu_runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # a refusal comes as an exception
        if not optimised:
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        serialised = model.SerializeToString()
        with refusals(serialised):
            self._session = runtime.InferenceSession(
                serialised,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=NOT_ASKED_FOR,
            )
        inputs, outputs = ports(self._session.get_inputs()), ports(self._session.get_outputs())
        own = outputs[: len(outputs) - watched]
        batch = inputs[0].shape[0] if inputs and inputs[0].shape else 0
        self.signature = check_signature(
            inputs, own, batch=batch if isinstance(batch, int) else 0, error=BuildError
        )

    def run_batches(self, images: Images) -> Iterator[list[Any]]:
        """All outputs for each batch of (n, C, H, W) images; the last batch is filled up."""
        for batch in in_batches(images, self.signature):
            with translated(BuildError, "ONNX Runtime failed", fix=EXPORT_AGAIN):
                yield self._session.run(None, {self.signature.input_name: batch})

    def logits(self, images: Images) -> Logits:
        """(n, classes) logits of (n, C, H, W) images."""
        parts = [outputs[0] for outputs in self.run_batches(images)]
        return np.concatenate(parts)[: len(images)].astype(np.float32)

    def finite_logits(self, images: Images) -> Logits:
        """The same, to hold others against; BuildError if they are not finite themselves."""
        logits = self.logits(images)
        if not np.isfinite(logits).all():
            raise BuildError("the fp32 network itself computes no finite logits", fix=CHECK_WEIGHTS)
        return logits


def in_batches(images: Images, signature: Signature) -> Iterator[Images]:
    """Whole batches of the model's size; the last one is filled up with its own images again.

    Zeros would be no images: they would stretch the ranges that are taken from them.
    """
    if images.ndim != 4 or images.shape[1:] != signature.input_shape[1:]:
        wanted = ", ".join(map(str, signature.input_shape[1:]))
        raise BuildError(
            f"the network takes images (n, {wanted}), not {images.shape}",
            fix="give images as the network's input takes them",
        )
    batch = signature.input_shape[0]
    for start in range(0, len(images), batch):
        part = np.ascontiguousarray(images[start : start + batch], np.float32)
        yield part if len(part) == batch else np.resize(part, (batch, *part.shape[1:]))


def relative_error(logits: Logits, expected: Logits) -> float:
    """Largest |difference| over the largest |expected|; infinite where a logit is not finite."""
    if not np.isfinite(logits).all():
        return float("inf")
    largest = float(np.abs(expected).max())
    difference = float(np.abs(logits - expected).max())
    if largest == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / largest


def cpu_runtime() -> Any:
    """The onnxruntime module; BuildError if it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise BuildError("onnxruntime is needed to check the precision", fix=INSTALL)
    return importlib.import_module("onnxruntime")


def shrunk(names: tuple[str, ...], passes: Callable[[frozenset[str]], bool]) -> tuple[str, ...]:
    """A subset of `names` that passes, though it would not without any one of its members.

    All of `names` together must pass. Runs of names are left out, long ones first, so a few that
    matter among n take about 2 log2(n) trials each.
    """
    kept = list(names)
    length = max(1, len(kept) // 2)
    while kept:
        before = len(kept)
        start = 0
        while start < len(kept):
            fewer = kept[:start] + kept[start + length :]
            if passes(frozenset(fewer)):
                kept = fewer
            else:
                start += length
        if length == 1 and len(kept) == before:
            break
        length = max(1, length // 2)
    return tuple(kept)
