"""ONNX Runtime on CUDA: the engine is the typed graph, optimised when it is loaded."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import io
import re
from collections.abc import Collection, Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from targets.base import BuildRecord, Engine, Images, Precision, Target, TritonServing
from targets.errors import BuildError, DeployError, EngineError
from targets.files import REBUILD, replacing
from targets.fingerprint import Fingerprint
from targets.gpu.cuda import DRIVER, bindings_reasons, device, driver_reasons
from targets.gpu.fingerprint import gpu_fingerprint
from targets.gpu.nvml import GpuMonitor, nvml_reasons
from targets.ort.cuda_engine import OrtCudaEngine
from targets.ort.session import (
    ERRORS_ONLY,
    STAMP_TARGET,
    TRITON_OPTIMISES_ALL,
    ports,
    refusals,
    stamp,
    translated,
)
from targets.precision.reference import read_onnx
from targets.signature import Signature, check_signature
from targets.trt.graph import Request, typed_model

PROVIDER = "CUDAExecutionProvider"
INSTALL = "pip install 'wgates[ort-cuda]'"
_FAILED = re.compile(r"Failed to load (\S+?):")

# stamped into the engine: another version may optimise the graph otherwise
STAMP_RUNTIME = "wgates.runtime"


class OrtCuda(Target):
    """`ort-cuda`: ONNX Runtime's CUDA provider, fp32 without TF32."""

    name = "ort-cuda"
    precision: Precision = "fp32"
    engine_suffix = ".onnx"
    channel_multiple = 8
    channel_block = 4
    takes = frozenset({"batch", "threads", "cuda_graph"})
    packages = ("onnxruntime-gpu", "cuda-bindings", "nvidia-ml-py")
    install = INSTALL

    def is_available(self) -> tuple[str, ...]:
        return (*runtime_reasons(), *driver_reasons(), *bindings_reasons(), *nvml_reasons())

    def fingerprint(self) -> Fingerprint:
        return gpu_fingerprint(
            self.name,
            self.precision,
            runtime=f"onnxruntime-gpu {self._runtime().__version__}",
            options=self.options,
            settings=("optimization=all", "cudnn_conv_algo_search=exhaustive"),
        )

    def build(
        self,
        onnx: bytes | Path,
        out: Path,
        batches: Iterable[Images] = (),
        *,
        keep_fp32: Collection[str] = (),
    ) -> BuildRecord:
        runtime = self._runtime()
        request = Request(self.precision, self.options.batch, batches, keep_fp32)
        model = typed_model(read_onnx(onnx), request)
        with refusals(model.onnx):
            session = self._session(runtime, model.onnx, BuildError)
        self._signature(session, BuildError)
        with replacing(out) as partial:
            partial.write_bytes(model.onnx)
            stamp(partial, {STAMP_TARGET: self.name, STAMP_RUNTIME: runtime.__version__})
        return BuildRecord(out, model.kept_fp32, model.facts)

    def load(self, engine: Path) -> Engine:
        stamped = read_stamp(engine)
        if stamped.get(STAMP_TARGET) != self.name:
            raise EngineError(
                f"{engine} was not built by {self.name}, or is cut short", fix=REBUILD
            )
        runtime = self._runtime()
        if stamped.get(STAMP_RUNTIME) != runtime.__version__:
            built_by = f"onnxruntime {stamped.get(STAMP_RUNTIME)}, here is {runtime.__version__}"
            raise EngineError(f"{engine} was built by {built_by}", fix=REBUILD)
        with translated(EngineError, f"cannot load {engine}"):
            session = self._session(runtime, engine, EngineError)
        signature = self._signature(session, EngineError)
        monitor = GpuMonitor.open(device().pci_bus_id)
        return OrtCudaEngine(runtime, session, signature, monitor)

    def triton(self) -> TritonServing:
        graph = "measured with a CUDA graph; Triton's onnxruntime backend captures none"
        options = self._provider_options()
        return TritonServing(
            "onnxruntime",
            on_gpu=True,
            accelerator={name: options[name] for name in ("use_tf32", "cudnn_conv_algo_search")},
            graph_level=TRITON_OPTIMISES_ALL,
            doubts=(graph,) if self.options.cuda_graph else (),
        )

    def _runtime(self) -> Any:
        self.required(self.is_available())
        return importlib.import_module("onnxruntime")

    def _session(self, runtime: Any, model: bytes | Path, error: type[DeployError]) -> Any:
        """A session with every node on CUDA; `error` where ONNX Runtime fell back to the CPU."""
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.options.thread_count
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        source = model if isinstance(model, bytes) else str(model)
        providers = [(PROVIDER, self._provider_options())]
        session = runtime.InferenceSession(source, options, providers=providers)
        given = session.get_providers()
        if PROVIDER not in given:
            raise error(
                f"asked for {PROVIDER}, ONNX Runtime gave {', '.join(given)}", fix=self.install
            )
        return session

    def _provider_options(self) -> dict[str, str]:
        return {
            "device_id": "0",
            "use_tf32": "0",  # on by default, and no fp32: 10 bits of mantissa
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "enable_cuda_graph": str(int(self.options.cuda_graph)),
        }

    def _signature(self, session: Any, error: type[DeployError]) -> Signature:
        return check_signature(
            ports(session.get_inputs()),
            ports(session.get_outputs()),
            batch=self.options.batch,
            error=error,
        )


class OrtCudaFp16(OrtCuda):
    """`ort-cuda-fp16`: fp16 with float32 input and output."""

    name = "ort-cuda-fp16"
    precision: Precision = "fp16"
    channel_block = 8  # tensor cores take channels by 16 bytes


def read_stamp(engine: Path) -> dict[str, str]:
    """What the file says it is; EngineError if it is no ONNX file. Needs no runtime."""
    onnx = importlib.import_module("onnx")
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    try:
        model = onnx.load_from_string(engine.read_bytes())
    except OSError as error:
        raise EngineError(f"cannot read {engine}: {error.strerror}", fix=REBUILD) from error
    except decode_error as error:
        raise EngineError(f"{engine} is foreign, damaged or cut short", fix=REBUILD) from error
    return {entry.key: entry.value for entry in model.metadata_props}


def runtime_reasons() -> tuple[str, ...]:
    """Why the installed ONNX Runtime cannot use CUDA, the driver aside; empty if it can."""
    if importlib.util.find_spec("onnxruntime") is None:
        return (f"onnxruntime-gpu is not installed: {INSTALL}",)
    try:
        runtime = importlib.import_module("onnxruntime")
        providers = runtime.get_available_providers()
    except (ImportError, AttributeError) as error:
        # what is left after one of two onnxruntime distributions was uninstalled
        return (f"onnxruntime is damaged ({error}): {INSTALL} --force-reinstall",)
    if PROVIDER in providers:
        return missing_libraries(runtime)
    names = {"onnxruntime", "onnxruntime-gpu"}
    installed = names & {_plain_name(found.name) for found in distributions()}
    if installed == names:
        # both fill the same folder, and the one installed last wins
        fix = "pip install --force-reinstall --no-deps onnxruntime-gpu"
        return (f"onnxruntime lies over onnxruntime-gpu: pip uninstall onnxruntime; {fix}",)
    return (f"this onnxruntime has no {PROVIDER}; onnxruntime-gpu has: {INSTALL}",)


def missing_libraries(runtime: Any) -> tuple[str, ...]:
    """Libraries that the CUDA provider cannot find, NVIDIA's driver aside."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):  # it prints, and raises nothing
        runtime.preload_dlls()
    failed = [_FAILED.match(line) for line in told.getvalue().splitlines()]
    if named := tuple(f"{found[1]} is missing: {INSTALL}" for found in failed if found):
        return named
    folder = Path(runtime.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        is_driver = str(error).startswith(DRIVER)  # `driver_reasons` says that
        return () if is_driver else (f"its CUDA provider does not load ({error}): {INSTALL}",)
    return ()


def _plain_name(distribution: str | None) -> str:
    return (distribution or "").lower().replace("_", "-")
