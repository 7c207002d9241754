"""A network in the precision that an OpenVINO target wants, before it is compiled."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from targets.base import Images
from targets.errors import BuildError
from targets.ov.engine import (
    OpenvinoEngine,
    Settings,
    compiled_model,
    read_model,
    translated,
)
from targets.precision.half import RANDOM_IMAGES
from targets.precision.qdq import calibrate_ranges, cpu_form, to_qdq
from targets.precision.reference import in_batches, node_names, relative_error
from targets.signature import Signature

LARGEST_F16 = float(np.finfo(np.float16).max)
FEW_VALUES = 2  # dimensions that a weight worth storing in 16 bits has at least; not a bias


@dataclass(frozen=True)
class TypedModel:
    """An `ov.Model` in its final precision, and how it was made."""

    model: Any
    kept_fp32: tuple[str, ...] = ()  # nodes, in graph order
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON


def with_f16_weights(proto: Any, keep_fp32: Collection[str]) -> TypedModel:
    """The network with its weights stored in f16, but for nodes to keep or beyond f16's range.

    A bias stays in f32. What it computes in is not said here, but when it is compiled.
    """
    onnx = importlib.import_module("onnx")
    stored = type(proto)()
    stored.CopyFrom(proto)
    readers = _readers(proto)
    kept, halved = set(keep_fp32), []
    for weight in stored.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < FEW_VALUES:
            continue
        values = onnx.numpy_helper.to_array(weight)
        if np.abs(values).max(initial=0.0) > LARGEST_F16:
            kept |= readers.get(weight.name, set())
        elif readers.get(weight.name, set()).isdisjoint(keep_fp32):
            halved.append((weight, values))
    # a weight that one of two readers needs in f32 stays for both
    halved = [(w, v) for w, v in halved if readers.get(w.name, set()).isdisjoint(kept)]
    casts = [_halve(onnx, weight, values) for weight, values in halved]
    nodes = [*casts, *(onnx.NodeProto.FromString(n.SerializeToString()) for n in stored.graph.node)]
    del stored.graph.node[:]
    stored.graph.node.extend(nodes)
    model = read_model(stored.SerializeToString())
    _mark_stored(model, {cast.output[0] for cast in casts})
    kept_in_order = tuple(name for name in node_names(proto) if name in kept)
    return TypedModel(model, kept_in_order, {"weights": "f16", "f16_weights": len(casts)})


def _readers(proto: Any) -> dict[str, set[str]]:
    """Names of the nodes that read each tensor."""
    readers: dict[str, set[str]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.name)
    return readers


def _halve(onnx: Any, weight: Any, values: np.ndarray[Any, Any]) -> Any:
    """Store a float32 initializer in f16; the cast that gives its readers f32 back."""
    name, half = weight.name, f"{weight.name}.f16"
    weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), half))
    return onnx.helper.make_node("Cast", [half], [name], name=name, to=onnx.TensorProto.FLOAT)


def _mark_stored(model: Any, names: set[str]) -> None:
    """Mark the casts of weights as decompression; else a blob would hold them in f32 again."""
    for operation in model.get_ordered_ops():
        if operation.get_type_name() == "Convert" and names & operation.output(0).names:
            operation.get_rt_info()["decompression_0"] = True


def logits_error(
    model: Any, proto: Any, settings: Settings, signature: Signature, batches: Sequence[Images]
) -> float:
    """Largest |typed - fp32| logit over the largest |fp32 logit|, on images or on random ones."""
    shape = (RANDOM_IMAGES, *signature.input_shape[1:])
    random = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    images = np.concatenate(batches) if any(map(len, batches)) else random
    plain = read_model(proto.SerializeToString())
    logits = []
    for network, wanted in ((model, settings), (plain, replace(settings, compute="f32"))):
        with OpenvinoEngine(compiled_model(network, wanted, BuildError), signature) as engine:
            logits.append(engine.infer(images))
    return relative_error(*logits)


def quantized_by_qdq(
    proto: Any, batches: Sequence[Images], keep_fp32: Collection[str]
) -> TypedModel:
    """The network as Q/DQ pairs over the ranges of some images, in the form quickest here."""
    serialised = proto.SerializeToString()
    ranges = calibrate_ranges(serialised, batches)
    quantized = to_qdq(serialised, ranges, cpu_form(), keep_fp32=keep_fp32)
    model = read_model(quantized.onnx)
    return TypedModel(model, quantized.kept_fp32, {**quantized.facts, "quantizer": "qdq"})


def quantized_by_nncf(
    proto: Any, batches: Sequence[Images], signature: Signature, keep_fp32: Collection[str]
) -> TypedModel:
    """The network as NNCF's post-training quantisation leaves it; nothing in that is random."""
    model = read_model(proto.SerializeToString())
    items = [item for images in batches for item in in_batches(images, signature)]
    with _quiet_nncf() as nncf, translated(BuildError, "NNCF failed"):
        quantized = nncf.quantize(
            model,
            nncf.Dataset(items),
            subset_size=len(items),
            target_device=nncf.TargetDevice.CPU,
            ignored_scope=nncf.IgnoredScope(names=_operations_of(model, proto, keep_fp32)),
        )
    facts = {
        "quantizer": "nncf",
        "nncf": importlib.metadata.version("nncf"),
        "images": sum(map(len, batches)),
    }
    kept = tuple(name for name in node_names(proto) if name in keep_fp32)
    return TypedModel(quantized, kept, facts)


def _operations_of(model: Any, proto: Any, nodes: Collection[str]) -> list[str]:
    """Friendly names of the operations that OpenVINO made of some ONNX nodes.

    One node may become several: from the one that writes the node's output, back to those whose
    output ONNX has a name for.
    """
    makers = {name: op for op in model.get_ordered_ops() for o in op.outputs() for name in o.names}
    waiting = [makers[n.output[0]] for n in proto.graph.node if n.name in nodes]
    found: dict[str, None] = {}
    while waiting:
        operation = waiting.pop()
        found[operation.get_friendly_name()] = None
        sources = [source.get_source_output() for source in operation.inputs()]
        waiting += [
            source.get_node()
            for source in sources
            if not source.names and source.get_node().get_type_name() != "Constant"
        ]
    return list(found)


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """The nncf module, without its progress bars, its log and torch's remarks on its import."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        nncf = importlib.import_module("nncf")
        with contextlib.redirect_stdout(io.StringIO()):
            yield nncf
    finally:
        logging.disable(disabled)
