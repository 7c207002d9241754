"""INT8 graphs as Q/DQ pairs: ranges from images once, then any number of quantised forms."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

import numpy as np

from targets.base import Images
from targets.errors import BuildError
from targets.machine import cpu_isa
from targets.precision.graph import sort_nodes
from targets.precision.reference import (
    CHECK_WEIGHTS,
    Runner,
    cpu_runtime,
    node_names,
    parsed,
    relative_error,
    require_nodes,
)

OLDEST_OPSET = 13  # the first whose Q/DQ know channels
# TensorRT fuses these with what follows; rounding in between costs accuracy and speed
FUSED_WITH_NEXT = ["Conv", "ConvTranspose", "Gemm", "MatMul", "Add"]
ORDER_IMAGES = 16  # on which nodes are put in order of harm: each node costs a run over them

# without these, kernels add two products of 8 bits in 16 and may saturate
_WIDE_SUMS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_NARROW_ISA = frozenset({"avx2", "avx512f"})

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


class QdqForm(Enum):
    """How numbers become 8 bits; which form is quick, or allowed, depends on the runtime."""

    ASYMMETRIC = "uint8 asymmetric activations, int8 symmetric weights per channel, int32 bias"
    # for x86 CPUs without VNNI, whose kernels add two products in 16 bits and saturate
    NARROW = "uint8 asymmetric activations, 7-bit symmetric weights per channel, int32 bias"
    # the only one that TensorRT parses
    SYMMETRIC = "int8 symmetric activations, int8 symmetric weights per channel, float bias"


def cpu_form() -> QdqForm:
    """The form for this CPU: 7-bit weights where its kernels would saturate with 8."""
    isa = frozenset(cpu_isa())
    saturates = isa & _NARROW_ISA and not isa & _WIDE_SUMS
    return QdqForm.NARROW if saturates else QdqForm.ASYMMETRIC


@dataclass(frozen=True)
class Ranges:
    """Lowest and highest value of each float tensor of a graph over some images."""

    limits: Mapping[str, tuple[float, float]]
    images: int
    method: str = "minmax"

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", MappingProxyType(dict(self.limits)))


@dataclass(frozen=True)
class QuantizedModel:
    """A Q/DQ graph, and how it was made."""

    onnx: bytes  # float32 input and output
    kept_fp32: tuple[str, ...]  # nodes left in fp32 as asked, in graph order
    facts: Mapping[str, Any]  # JSON: quantizer and version, form, calibration, images, nodes


def calibrate_ranges(onnx: bytes, batches: Iterable[Images]) -> Ranges:
    """The ranges of a float32 graph over (n, C, H, W) images; one pass serves all forms.

    Extremes and no histograms: on three networks entropy made the same errors within 3 %, the
    99.99th percentile smaller ones here and larger ones there, and both took several times as
    long (benchmarks/results/int8.json).
    """
    model = parsed(onnx)
    tensors = _float_tensors(model)
    runner = Runner(_with_extremes(model, tensors), watched=2 * len(tensors))
    lowest, highest = np.full(len(tensors), np.inf), np.full(len(tensors), -np.inf)
    images = 0
    for batch in batches:
        images += len(batch)
        for outputs in runner.run_batches(batch):
            extremes = np.array([float(value) for value in outputs[1:]]).reshape(-1, 2)
            lowest = np.minimum(lowest, extremes[:, 0])
            highest = np.maximum(highest, extremes[:, 1])
    if not images:
        raise BuildError(
            "int8 needs images to take its ranges from, and got none",
            fix="give images of the training split",
        )
    _require_finite(tensors, lowest, highest)
    limits = zip(lowest.tolist(), highest.tolist(), strict=True)
    return Ranges(dict(zip(tensors, limits, strict=True)), images)


def _float_tensors(model: Any) -> tuple[str, ...]:
    """Names of all activations of type float32, the graph's input and output among them."""
    float32 = importlib.import_module("onnx").TensorProto.FLOAT
    weights = {weight.name for weight in model.graph.initializer}
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    names = (v.name for v in values if v.type.tensor_type.elem_type == float32)
    return tuple(dict.fromkeys(name for name in names if name not in weights))


def _with_extremes(model: Any, tensors: tuple[str, ...]) -> Any:
    """A copy of a ModelProto that also outputs the minimum and maximum of each tensor."""
    helper = importlib.import_module("onnx").helper
    float32 = importlib.import_module("onnx").TensorProto.FLOAT
    copied = type(model)()
    copied.CopyFrom(model)
    for name in tensors:
        for kind in ("ReduceMin", "ReduceMax"):
            output = f"{name}.{kind}"
            copied.graph.node.append(helper.make_node(kind, [name], [output], keepdims=0))
            copied.graph.output.append(helper.make_tensor_value_info(output, float32, []))
    return copied


def _require_finite(
    tensors: tuple[str, ...], lowest: np.ndarray[Any, Any], highest: np.ndarray[Any, Any]
) -> None:
    for name, low, high in zip(tensors, lowest, highest, strict=True):
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BuildError(
                f"the fp32 network itself computes {low:g} to {high:g} in {name}",
                fix=CHECK_WEIGHTS,
            )


def to_qdq(
    onnx: bytes, ranges: Ranges, form: QdqForm, *, keep_fp32: Collection[str] = ()
) -> QuantizedModel:
    """Quantise a float32 graph, all but the nodes named in `keep_fp32`.

    The ranges must be those of this very graph. BuildError if nothing is left to quantise.
    """
    model = parsed(onnx)
    require_nodes(model, keep_fp32)
    kept = tuple(name for name in node_names(model) if name in keep_fp32)
    quantized = _quantized(model, ranges, form, excluded=kept)
    count = sum(node.op_type == QUANTIZE for node in quantized.graph.node)
    if not count:
        raise BuildError(
            "nothing was quantised", fix="keep fewer nodes in fp32, or choose an fp32 target"
        )
    facts = {
        "quantizer": f"onnxruntime {cpu_runtime().__version__}",
        "form": form.value,
        "calibration": ranges.method,
        "images": ranges.images,
        "quantized_tensors": count,
    }
    return QuantizedModel(quantized.SerializeToString(), kept, facts)


def sensitivity(
    onnx: bytes, ranges: Ranges, form: QdqForm, images: Images
) -> tuple[tuple[str, float], ...]:
    """Error of the logits on (n, C, H, W) images when only one node is quantised, worst first.

    Only nodes that are quantised on their own are listed. An error is the largest difference
    over the largest logit of the fp32 graph.
    """
    model = parsed(onnx)
    expected = Runner(model).finite_logits(images)
    found = []
    for name in node_names(model):
        quantized = _quantized(model, ranges, form, only=(name,))
        if any(node.op_type == QUANTIZE for node in quantized.graph.node):
            logits = Runner(quantized).logits(images)
            found.append((name, relative_error(logits, expected)))
    return tuple(sorted(found, key=lambda entry: -entry[1]))


def fallback_order(onnx: bytes, batches: Sequence[Images], form: QdqForm) -> tuple[str, ...]:
    """Nodes that are quantised on their own, by the harm that it does on a few of the images.

    The worst first; ranges come from all of the images, (n, C, H, W) each.
    """
    ranges = calibrate_ranges(onnx, batches)
    images = np.concatenate(batches)[:ORDER_IMAGES]
    return tuple(name for name, _ in sensitivity(onnx, ranges, form, images))


def _quantized(
    model: Any,
    ranges: Ranges,
    form: QdqForm,
    *,
    excluded: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
) -> Any:
    """A Q/DQ copy of a ModelProto that `parsed` gave."""
    _require_quantisable(model, ranges)
    quantization = importlib.import_module("onnxruntime.quantization")
    copied = type(model)()
    copied.CopyFrom(model)
    # tells the quantiser that types are inferred: it would write the model to disk to do so
    importlib.import_module("onnxruntime.quantization.quant_utils").add_infer_metadata(copied)
    symmetric = form is QdqForm.SYMMETRIC
    signed, unsigned = quantization.QuantType.QInt8, quantization.QuantType.QUInt8
    with _quiet_root():
        quantizer = quantization.QDQQuantizer(
            copied,
            per_channel=True,
            reduce_range=form is QdqForm.NARROW,
            weight_qType=signed,
            activation_qType=signed if symmetric else unsigned,
            tensors_range=_tensor_data(quantization, ranges),
            nodes_to_quantize=list(only),
            nodes_to_exclude=list(excluded),
            op_types_to_quantize=_operators(),
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": not symmetric,
                "OpTypesToExcludeOutputQuantization": FUSED_WITH_NEXT if symmetric else [],
            },
        )
        quantizer.quantize_model()
    _leave_output_exact(quantizer.model.model.graph)
    sort_nodes(quantizer.model.model.graph)  # the quantiser appends what it adds
    return quantizer.model.model


def _require_quantisable(model: Any, ranges: Ranges) -> None:
    if (opset := _opset(model)) < OLDEST_OPSET:
        raise BuildError(
            f"opset {opset} cannot quantise per channel", fix="export with opset 18 or later"
        )
    if missing := sorted(set(_float_tensors(model)) - ranges.limits.keys()):
        raise BuildError(
            f"the ranges lack {', '.join(missing[:3])}", fix="calibrate this very network"
        )


def _leave_output_exact(graph: Any) -> None:
    """Remove the Q/DQ pair before the graph's output: 8 bits are few to tell logits apart."""
    (output,) = graph.output
    last = next((n for n in graph.node if output.name in n.output), None)
    if last is None or last.op_type != DEQUANTIZE:
        return
    pair = [last, next(n for n in graph.node if last.input[0] in n.output)]
    exact = pair[1].input[0]
    for node in pair:
        graph.node.remove(node)
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                names[position] = output.name if name == exact else name


def _opset(model: Any) -> int:
    return max(
        int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")
    )


def _operators() -> list[str]:
    registry = importlib.import_module("onnxruntime.quantization.registry")
    return sorted(registry.QLinearOpsRegistry.keys() | registry.QDQRegistry.keys())


def _tensor_data(quantization: Any, ranges: Ranges) -> Any:
    limits = {
        name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.limits.items()
    }
    return quantization.TensorsData(quantization.CalibrationMethod.MinMax, limits)


@contextmanager
def _quiet_root() -> Iterator[None]:
    """Silence what the quantiser logs on the root logger, and only while it works."""
    root, silent = logging.getLogger(), logging.NullHandler()

    def not_of_quantizer(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in record.pathname

    root.addFilter(not_of_quantizer)
    root.addHandler(silent)  # without any handler `logging.info` would set one up for good
    try:
        yield
    finally:
        root.removeHandler(silent)
        root.removeFilter(not_of_quantizer)
