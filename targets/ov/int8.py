"""OpenVINO on the CPU in int8: quantised by ONNX Runtime's Q/DQ pairs, or by NNCF."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from targets.base import Images, Precision, TargetOptions
from targets.errors import BuildError, TargetUnavailableError
from targets.ov.cpu import OpenvinoTarget
from targets.ov.engine import kernels_by_precision
from targets.ov.typed import TypedModel, quantized_by_nncf, quantized_by_qdq
from targets.precision.qdq import cpu_form, fallback_order
from targets.precision.reference import read_onnx
from targets.signature import Signature

# the preferred one first: which module each needs, and the extra that brings it. Both make engines
# of one speed, except that OpenVINO runs NNCF's depthwise convolutions in f32, and is slower there
QUANTIZERS = {"qdq": ("onnxruntime", "ort-cpu"), "nncf": ("nncf", "nncf")}


class OpenvinoCpuInt8(OpenvinoTarget):
    """`openvino-cpu-int8`: int8 by ONNX Runtime's Q/DQ pairs or by NNCF, the rest in f32."""

    name = "openvino-cpu-int8"
    precision: Precision = "int8"
    takes = frozenset({"batch", "threads", "quantizer"})
    packages = ("openvino", "onnxruntime", "nncf")
    install = "pip install 'wgates[openvino,ort-cpu]'"

    def __init__(self, options: TargetOptions) -> None:
        super().__init__(options)
        # benchmarks/openvino_int8.py says why the first one is preferred
        self.quantizer = options.quantizer or next(iter(QUANTIZERS))
        if self.quantizer not in QUANTIZERS:
            raise TargetUnavailableError(
                f"target {self.name} has no quantizer {self.quantizer!r}",
                fix=f"choose one of {', '.join(QUANTIZERS)}",
            )

    def quantizers(self) -> tuple[str, ...]:
        return tuple(
            name for name, (needed, _) in QUANTIZERS.items() if importlib.util.find_spec(needed)
        )

    def is_buildable(self) -> tuple[str, ...]:
        reasons = self.is_available()
        if self.quantizer not in self.quantizers():
            needed, extra = QUANTIZERS[self.quantizer]
            return (*reasons, f"{needed} is not installed: pip install 'wgates[{extra}]'")
        return reasons

    def _form_settings(self) -> tuple[str, ...]:
        form = f"form={cpu_form().name.lower()}"
        return (f"quantizer={self.quantizer}", *((form,) if self.quantizer == "qdq" else ()))

    def _typed(
        self,
        proto: Any,
        signature: Signature,
        batches: Sequence[Images],
        keep_fp32: Collection[str],
    ) -> TypedModel:
        if not any(map(len, batches)):
            raise BuildError(
                "int8 needs images to take its ranges from, and got none",
                fix="give images of the training split",
            )
        if self.quantizer == "nncf":
            return quantized_by_nncf(proto, batches, signature, keep_fp32)
        return quantized_by_qdq(proto, batches, keep_fp32)

    def _facts(self, compiled: Any) -> dict[str, Any]:
        weighted = kernels_by_precision(compiled, "Convolution", "Deconvolution", "FullyConnected")
        convolutions = kernels_by_precision(compiled, "Convolution", "Deconvolution")
        if not weighted.get("i8"):
            raise BuildError(
                f"OpenVINO runs nothing in int8 here: its kernels are {weighted}",
                fix="keep fewer nodes in fp32, or choose openvino-cpu",
            )
        return {
            **super()._facts(compiled),
            "convolutions": sum(convolutions.values()),
            "int8_convolutions": convolutions.get("i8", 0),
        }

    def fallback_order(self, onnx: bytes | Path, batches: Iterable[Images]) -> tuple[str, ...]:
        self.required(self.is_buildable())
        return fallback_order(read_onnx(onnx), list(batches), cpu_form())
