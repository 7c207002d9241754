"""OpenVINO on the CPU in fp32 and fp16: the engine is the blob that it compiled."""

from __future__ import annotations

import importlib
import importlib.util
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from targets.base import (
    BuildRecord,
    Engine,
    Images,
    Precision,
    Target,
    TargetOptions,
    TritonServing,
)
from targets.errors import BuildError, EngineError
from targets.files import REBUILD
from targets.fingerprint import Fingerprint, cpu_fingerprint
from targets.machine import cpu_isa
from targets.ov.engine import (
    DEVICE,
    OpenvinoEngine,
    Settings,
    compiled_model,
    core,
    device_property,
    imported_model,
    kernels_by_precision,
    read_model,
    representation,
    signature_of,
    translated,
    version,
)
from targets.ov.file import EngineFile, Stamp
from targets.ov.typed import (
    TypedModel,
    logits_error,
    with_f16_weights,
)
from targets.precision.half import TOLERANCE
from targets.precision.reference import parsed, read_onnx, require_nodes
from targets.signature import Signature

INSTALL = "pip install 'wgates[openvino]'"


class OpenvinoTarget(Target):
    """What the three precisions share; they differ in the typed model that they compile."""

    engine_suffix = ".ovblob"
    # a block that is not full costs nearly a full one, but leaves less for the next layer to do
    channel_multiple = 8
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    install = INSTALL

    def __init__(self, options: TargetOptions) -> None:
        super().__init__(options)
        # f32 and int8 alike: with 33, 49 and 65 channels latency jumps by a quarter to a half
        self.channel_block = 16 if "avx512f" in cpu_isa() else 8

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
        proto = parsed(read_onnx(onnx))
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

    def triton(self) -> TritonServing:
        return TritonServing(
            "openvino",
            # one compiled model serves all instances, a stream each
            shared={"INFERENCE_NUM_THREADS": self.options.thread_count, "NUM_STREAMS": 1},
            doubts=self._triton_doubts(),
        )

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
        }

    def _triton_doubts(self) -> tuple[str, ...]:
        # the backend has no parameter that asks for f32
        given = core().get_property(DEVICE, "INFERENCE_PRECISION_HINT").to_string()
        if given == self.compute:
            return ()
        return (
            f"on a CPU like this one Triton's openvino backend computes in {given}, where the "
            f"engine computes in {self.compute}: its latency and logits will differ",
        )


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
