"""TensorRT and TensorRT-RTX as targets: one adapter, with the module named by the class.

TensorRT builds on the GPU that will run the plan. TensorRT-RTX builds without a GPU, for named
compute capabilities, and compiles the kernels where the plan is loaded.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
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
from targets.errors import EngineError, TargetUnavailableError
from targets.files import REBUILD
from targets.fingerprint import Fingerprint
from targets.gpu.cuda import cuda_reasons, device, parse_capability
from targets.gpu.fingerprint import gpu_fingerprint
from targets.gpu.nvml import GpuMonitor, nvml_reasons
from targets.precision.reference import read_onnx
from targets.trt.builder import (
    BuildSettings,
    build_plan,
    known_capabilities,
    timing_cache_path,
)
from targets.trt.engine import RunSettings, TensorRtEngine
from targets.trt.graph import Request, int8_fallback_order, typed_model
from targets.trt.plan_file import PlanHeader, bare, read_plan, write_plan

# tensor cores take channels by 16 bytes, int8 ones by 32 channels; fp32 without TF32 uses none
CHANNEL_BLOCK: dict[Precision, int] = {"fp32": 4, "fp16": 8, "int8": 32}


class TensorRt(Target):
    """What all targets of both modules share; subclasses name module and precision.

    The threads are those of the builder; a loaded engine is driven by the calling one alone.
    """

    module: ClassVar[str] = "tensorrt"
    engine_suffix = ".plan"
    channel_multiple = 8
    takes = frozenset({"batch", "threads", "device_time", "cuda_graph"})
    packages: ClassVar[tuple[str, ...]] = ("tensorrt", "pycuda", "cuda-bindings", "nvidia-ml-py")
    install = "pip install 'wgates[trt]'"

    def __init__(self, options: TargetOptions) -> None:
        super().__init__(options)
        self.channel_block = CHANNEL_BLOCK[self.precision]
        try:
            names = tuple(parse_capability(text) for text in options.compute_capabilities)
        except ValueError as error:
            raise TargetUnavailableError(str(error), fix="such as sm89") from error
        self.compute_capabilities = names

    def is_available(self) -> tuple[str, ...]:
        reasons = (*self.build_reasons(), *cuda_reasons(), *nvml_reasons())
        return reasons or self._device_reasons()

    def is_buildable(self) -> tuple[str, ...]:
        return self.is_available()

    def build_reasons(self) -> tuple[str, ...]:
        """Why models cannot be parsed and converted here, device aside."""
        found = [*self._module_reasons()]
        if self.precision != "fp32" and importlib.util.find_spec("onnxruntime") is None:
            found.append(f"onnxruntime is not installed, {self.precision} graphs are made with it")
        return tuple(found) or self._capability_reasons()

    def fingerprint(self) -> Fingerprint:
        self.required(self.is_available())
        capabilities = ",".join(self.compute_capabilities) or "default"
        return gpu_fingerprint(
            self.name,
            self.precision,
            runtime=self._version(),
            options=self.options,
            settings=("typing=strong", f"compute_capabilities={capabilities}"),
        )

    def build(
        self,
        onnx: bytes | Path,
        out: Path,
        batches: Iterable[Images] = (),
        *,
        keep_fp32: Collection[str] = (),
    ) -> BuildRecord:
        self.required(self.is_buildable())
        source = read_onnx(onnx)
        request = Request(self.precision, self.options.batch, batches, keep_fp32)
        model = typed_model(source, request)
        built_on = self._build_device()
        settings = BuildSettings(
            self.compute_capabilities,
            self.options.thread_count,
            timing_cache_path(self._version(), built_on) if built_on else None,
            self.on_progress,
        )
        plan = build_plan(self._trt(), model, settings)
        header = PlanHeader(
            target=self.name,
            runtime=self._version(),
            compute_capabilities=self.compute_capabilities,
            device=built_on,
            batch=self.options.batch,
            onnx_sha256=hashlib.sha256(source).hexdigest(),
        )
        write_plan(out, header, plan.content)
        facts = {**model.facts, **plan.facts, **asdict(header)}
        facts["compute_capabilities"] = list(header.compute_capabilities)  # as JSON has them
        return BuildRecord(out, model.kept_fp32, facts)

    def fallback_order(self, onnx: bytes | Path, batches: Iterable[Images]) -> tuple[str, ...]:
        if self.precision != "int8":
            return ()
        request = Request(self.precision, self.options.batch, batches)
        return int8_fallback_order(read_onnx(onnx), request)

    def load(self, engine: Path) -> Engine:
        header, plan = read_plan(engine)
        self._check(header, engine)
        self.required(self.is_available())
        self._check_device(header, engine)
        options = self.options
        settings = RunSettings(options.batch, options.device_time, options.cuda_graph)
        monitor = GpuMonitor.open(device().pci_bus_id)
        return TensorRtEngine(self._trt(), plan, settings, monitor)

    def triton(self) -> TritonServing | None:
        return TritonServing(
            "tensorrt",
            on_gpu=True,
            cuda_graphs=self.options.cuda_graph,
            needs=(
                "the plan runs only in a Triton with the TensorRT, and on the GPU, that the "
                "fingerprint in certificate.json names",
            ),
        )

    def served_files(self, engine: Path) -> Mapping[str, bytes]:
        return {"model.plan": bare(engine)}

    def _module_reasons(self) -> tuple[str, ...]:
        if importlib.util.find_spec(self.module) is None:
            return (f"{self.module} is not installed: {self.install}",)
        try:
            self._trt()
        except (ImportError, OSError) as error:  # such as bindings without their libraries
            return (f"{self.module} is damaged ({error}): {self.install} --force-reinstall",)
        return ()

    def _trt(self) -> Any:
        return importlib.import_module(self.module)

    def _version(self) -> str:
        return f"{self.module} {self._trt().__version__}"

    def _build_device(self) -> str:
        """The GPU that the plan depends on; "" where the builder needs none."""
        gpu = device()
        return f"{gpu.name} ({gpu.compute_capability})"

    def _capability_reasons(self) -> tuple[str, ...]:
        return ()

    def _device_reasons(self) -> tuple[str, ...]:
        return ()

    def _check(self, header: PlanHeader, engine: Path) -> None:
        """EngineError unless this target at this version built the file; needs no GPU."""
        if header.target != self.name:
            raise EngineError(
                f"{engine} was built by {header.target}, not {self.name}", fix=REBUILD
            )
        if header.batch != self.options.batch:
            raise EngineError(
                f"{engine} has batch {header.batch}, the target batch {self.options.batch}",
                fix=f"choose --batch {header.batch}, or {REBUILD}",
            )
        if not self._module_reasons() and header.runtime != self._version():
            raise EngineError(
                f"{engine} was built by {header.runtime}, here is {self._version()}", fix=REBUILD
            )

    def _check_device(self, header: PlanHeader, engine: Path) -> None:
        if header.device != self._build_device():
            raise EngineError(
                f"{engine} was built on {header.device}, here is {self._build_device()}",
                fix=REBUILD,
            )


class TensorRtRtx(TensorRt):
    """TensorRT-RTX: plans for consumer GPUs, built anywhere."""

    module = "tensorrt_rtx"
    takes = TensorRt.takes | {"compute_capabilities"}
    packages = ("tensorrt-rtx", "pycuda", "cuda-bindings", "nvidia-ml-py")
    install = "pip install 'wgates[trt-rtx]' pycuda"

    def is_buildable(self) -> tuple[str, ...]:
        return self.build_reasons()

    def triton(self) -> None:
        """None: Triton's TensorRT backend links TensorRT itself."""

    def _build_device(self) -> str:
        return ""

    def _capability_reasons(self) -> tuple[str, ...]:
        known = known_capabilities(self._trt())
        unknown = [name for name in self.compute_capabilities if name not in known]
        listed = ", ".join(known)
        return tuple(f"{name} is none of {self.module}'s targets: {listed}" for name in unknown)

    def _device_reasons(self) -> tuple[str, ...]:
        here, known = device().compute_capability, known_capabilities(self._trt())
        if here not in known:
            return (f"{self.module} does not run on {here}, only on {', '.join(known)}",)
        if self.compute_capabilities and here not in self.compute_capabilities:
            listed = ", ".join(self.compute_capabilities)
            return (f"this GPU is {here}, the engines are to be for {listed}",)
        return ()

    def _check_device(self, header: PlanHeader, engine: Path) -> None:
        wanted = header.compute_capabilities
        here = device().compute_capability
        if wanted and here not in wanted:
            raise EngineError(
                f"{engine} was built for {', '.join(wanted)}, this GPU is {here}", fix=REBUILD
            )


class TrtFp32(TensorRt):
    """`trt-fp32`."""

    name = "trt-fp32"
    precision: Precision = "fp32"


class TrtFp16(TensorRt):
    """`trt-fp16`: fp16 with float32 input and output."""

    name = "trt-fp16"
    precision: Precision = "fp16"


class TrtInt8(TensorRt):
    """`trt-int8`: int8 by explicit Q/DQ; the rest is fp32."""

    name = "trt-int8"
    precision: Precision = "int8"
    channel_multiple = 32


class TrtRtxFp32(TensorRtRtx):
    """`trt-rtx-fp32`."""

    name = "trt-rtx-fp32"
    precision: Precision = "fp32"


class TrtRtxFp16(TensorRtRtx):
    """`trt-rtx-fp16`: fp16 with float32 input and output."""

    name = "trt-rtx-fp16"
    precision: Precision = "fp16"


class TrtRtxInt8(TensorRtRtx):
    """`trt-rtx-int8`: int8 by explicit Q/DQ; the rest is fp32."""

    name = "trt-rtx-int8"
    precision: Precision = "int8"
    channel_multiple = 32
