"""OpenVINO on the CPU in fp32, fp16 and int8: the engine is the blob that it compiled."""

from __future__ import annotations

import importlib
import importlib.util
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from targets.base import BuildRecord, Engine, Images, Precision, Target, TargetOptions
from targets.errors import BuildError, EngineError, TargetUnavailableError
from targets.fingerprint import Fingerprint, cpu_fingerprint
from targets.half import TOLERANCE
from targets.machine import cpu_isa
from targets.openvino_engine import (
    DEVICE,
    OpenvinoEngine,
    Settings,
    compiled_model,
    core,
    device_property,
    imported_model,
    kernels_by_precision,
    model_bytes,
    read_model,
    representation,
    signature_of,
    translated,
    version,
)
from targets.openvino_file import REBUILD, EngineFile, Stamp
from targets.openvino_typed import (
    TypedModel,
    logits_error,
    qdq_form,
    quantized_by_nncf,
    quantized_by_qdq,
    with_f16_weights,
)
from targets.qdq import calibrate_ranges, sensitivity
from targets.reference import parsed, require_nodes
from targets.signature import Signature

INSTALL = "pip install 'wgates[openvino]'"
# the preferred one first: which module each needs, and the extra that brings it
QUANTIZERS = {"qdq": ("onnxruntime", "ort-cpu"), "nncf": ("nncf", "nncf")}


class OpenvinoTarget(Target):
    """What the three precisions share; they differ in the typed model that they compile."""

    engine_suffix = ".ovblob"
    channel_multiple = 8
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    install = INSTALL
    triton_backend = "openvino"
    channel_block = 16

    def is_available(self) -> tuple[str, ...]:
        if importlib.util.find_spec("openvino") is None:
            return (f"openvino is not installed: {INSTALL}",)
        try:
            devices = core().available_devices
        except (ImportError, AttributeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            return (f"openvino is damaged ({reason}): {INSTALL} --force-reinstall",)
        return () if DEVICE in devices else (f"openvino lacks its {DEVICE} plugin",)

    def fingerprint(self) -> Fingerprint:
        self.required(self.is_available())
        return cpu_fingerprint(
            self.name,
            self.precision,
            runtime=f"openvino {version().partition('-')[0]}",
            batch=self.options.batch,
            threads=self.options.thread_count,
            settings=(
                f"compute={self.compute}",
                *self._form_settings(),
                "streams=1",
                "pinning=off",
                "mode=performance",
                "interval=host end-to-end",
            ),
        )

    @property
    def compute(self) -> str:
        """The precision asked of OpenVINO for all that is not int8: "f32" or "f16"."""
        return "f32"

    def _form_settings(self) -> tuple[str, ...]:
        return ()

    @abstractmethod
    def _typed(
        self,
        proto: Any,
        signature: Signature,
        batches: Sequence[Images],
        keep_fp32: Collection[str],
    ) -> TypedModel:
        """The fp32 network of a ModelProto in this target's precision."""

    def build(
        self,
        onnx: bytes | Path,
        out: Path,
        batches: Iterable[Images] = (),
        *,
        keep_fp32: Collection[str] = (),
    ) -> BuildRecord:
        self.required(self.is_buildable())
        proto = parsed(model_bytes(onnx))
        require_nodes(proto, keep_fp32)
        signature = signature_of(
            read_model(proto.SerializeToString()), batch=self.options.batch, error=BuildError
        )
        typed = self._typed(proto, signature, list(batches), keep_fp32)
        compiled = compiled_model(typed.model, self._settings(), BuildError)
        facts = {**self._facts(compiled), **typed.facts}
        with translated(BuildError, "OpenVINO cannot write the engine"):
            blob = compiled.export_model().getvalue()
            EngineFile(self._stamp(), blob, *representation(typed.model)).write(out)
        return BuildRecord(out, typed.kept_fp32, facts)

    def load(self, engine: Path) -> Engine:
        self.required(self.is_available())
        content = EngineFile.read(engine)
        self._require_fit(content.stamp, engine)
        compiled = imported_model(content.blob, self._settings(), f"cannot load {engine}")
        signature = signature_of(compiled, batch=self.options.batch, error=EngineError)
        return OpenvinoEngine(compiled, signature)

    def served_files(self, engine: Path) -> Mapping[str, bytes]:
        # Triton's backend compiles for itself: it reads no blob
        content = EngineFile.read(engine)
        return {"model.xml": content.xml, "model.bin": content.weights}

    def _settings(self) -> Settings:
        return Settings(self.compute, self.options.thread_count)

    def _stamp(self) -> Stamp:
        return Stamp(self.name, version(), self.compute, cpu_isa())

    def _require_fit(self, stamp: Stamp, engine: Path) -> None:
        here = self._stamp()
        if stamp.target != here.target:
            raise EngineError(
                f"{engine} was built by {stamp.target}, not by {here.target}", fix=REBUILD
            )
        if stamp.runtime != here.runtime:
            versions = f"OpenVINO {stamp.runtime}, here is {here.runtime}"
            raise EngineError(f"{engine} was built by {versions}", fix=REBUILD)
        if (stamp.isa, stamp.compute) != (here.isa, here.compute):
            built_for = f"a CPU with {' '.join(stamp.isa)} that computes in {stamp.compute}"
            ours = f"this one has {' '.join(here.isa)} and computes in {here.compute}"
            raise EngineError(f"{engine} was built for {built_for}; {ours}", fix=REBUILD)

    def _facts(self, compiled: Any) -> dict[str, Any]:
        return {
            "openvino": version(),
            "compute": self.compute,
            "layers": kernels_by_precision(compiled),
            # the backend has no parameter that asks for f32
            "compute_in_triton": core()
            .get_property(DEVICE, "INFERENCE_PRECISION_HINT")
            .to_string(),
        }


class OpenvinoCpu(OpenvinoTarget):
    """`openvino-cpu`: fp32, also where the CPU could do bf16."""

    name = "openvino-cpu"
    precision: Precision = "fp32"

    def _typed(
        self,
        proto: Any,
        signature: Signature,
        batches: Sequence[Images],
        keep_fp32: Collection[str],
    ) -> TypedModel:
        return TypedModel(read_model(proto.SerializeToString()))


class OpenvinoCpuFp16(OpenvinoTarget):
    """`openvino-cpu-fp16`: weights stored in f16; computed in f16 only where the CPU can.

    Elsewhere the file is half as large and no faster than fp32. Never bf16.
    """

    name = "openvino-cpu-fp16"
    precision: Precision = "fp16"

    @property
    def compute(self) -> str:
        return "f16" if "FP16" in device_property("OPTIMIZATION_CAPABILITIES") else "f32"

    def _form_settings(self) -> tuple[str, ...]:
        return ("weights=f16",)

    def _typed(
        self,
        proto: Any,
        signature: Signature,
        batches: Sequence[Images],
        keep_fp32: Collection[str],
    ) -> TypedModel:
        if keep_fp32 and self.compute == "f16":
            raise BuildError(
                "OpenVINO computes a whole network in f16: no node can stay in fp32",
                fix="choose openvino-cpu",
            )
        typed = with_f16_weights(proto, keep_fp32)
        error = logits_error(typed.model, proto, self._settings(), signature, batches)
        if not error <= TOLERANCE:
            raise BuildError(
                f"in fp16 the logits are off by {error:.2g} of the largest, over {TOLERANCE:g}",
                fix="choose openvino-cpu",
            )
        return TypedModel(typed.model, typed.kept_fp32, {**typed.facts, "logits_error": error})


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
        form = f"form={qdq_form().name.lower()}"
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
        serialised, images = model_bytes(onnx), list(batches)
        ranges = calibrate_ranges(serialised, images)
        found = sensitivity(serialised, ranges, qdq_form(), np.concatenate(images))
        return tuple(name for name, _ in found)
