"""ONNX Runtime on the CPU: the engine is the graph that it optimised for this kind of machine."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from targets.base import BuildRecord, Engine, Images, Precision, Target, TargetOptions
from targets.errors import BuildError, DeployError, EngineError
from targets.fingerprint import Fingerprint, cpu_fingerprint
from targets.machine import cpu_isa
from targets.onnxruntime_session import OrtEngine, open_session, ports, stamp, translated
from targets.signature import Signature, check_signature

PROVIDER = "CPUExecutionProvider"
INSTALL = "pip install 'wgates[ort-cpu]'"
ERRORS_ONLY = 3  # hides the warning that a saved graph fits this kind of machine only

# stamped into the engine: a graph for another CPU family would compute nonsense
STAMP_TARGET, STAMP_BLOCK = "wgates.target", "wgates.channel_block"


class OrtCpu(Target):
    """`ort-cpu`: ONNX Runtime's CPU provider, fp32."""

    name = "ort-cpu"
    precision: Precision = "fp32"
    engine_suffix = ".onnx"
    channel_multiple = 8
    takes = frozenset({"batch", "threads", "spinning"})
    packages = ("onnxruntime", "onnxruntime-gpu")
    install = INSTALL
    triton_backend = "onnxruntime"

    def __init__(self, options: TargetOptions) -> None:
        super().__init__(options)
        # the nchwc kernels hold as many channels in a block as the widest vector has floats
        self.channel_block = 16 if "avx512f" in cpu_isa() else 8

    def is_available(self) -> tuple[str, ...]:
        if importlib.util.find_spec("onnxruntime") is None:
            return (f"onnxruntime is not installed: {INSTALL}",)
        try:
            runtime = importlib.import_module("onnxruntime")
            providers = runtime.get_available_providers()
        except (ImportError, AttributeError) as error:
            # what is left after one of two onnxruntime distributions was uninstalled
            return (f"onnxruntime is damaged ({error}): {INSTALL} --force-reinstall",)
        return () if PROVIDER in providers else (f"onnxruntime lacks its {PROVIDER}",)

    def fingerprint(self) -> Fingerprint:
        return cpu_fingerprint(
            self.name,
            self.precision,
            runtime=f"onnxruntime {self._runtime().__version__}",
            batch=self.options.batch,
            threads=self.options.thread_count,
            settings=(
                "optimization=all",
                "execution=sequential",
                f"spinning={'on' if self.options.spinning else 'off'}",
                "interval=host end-to-end",
            ),
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
        options = self._session_options(runtime)
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        partial = out.with_name(f".{out.stem}.{os.getpid()}.partial{self.engine_suffix}")
        options.optimized_model_filepath = str(partial)
        try:
            with translated(BuildError, "ONNX Runtime refused the model"):
                session = open_session(runtime, onnx, options, (PROVIDER,), BuildError)
            self._signature(session, BuildError)
            stamp(partial, {STAMP_TARGET: self.name, STAMP_BLOCK: str(self.channel_block)})
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
        return BuildRecord(out)

    def load(self, engine: Path) -> Engine:
        runtime = self._runtime()
        options = self._session_options(runtime)
        # the file is optimised already: exactly what was built and verified is what runs
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        with translated(EngineError, f"cannot load {engine}"):
            session = open_session(runtime, engine, options, (PROVIDER,), EngineError)
        self._check_stamp(session.get_modelmeta().custom_metadata_map, engine)
        return OrtEngine(runtime, session, self._signature(session, EngineError))

    def _runtime(self) -> Any:
        self.required(self.is_available())
        return importlib.import_module("onnxruntime")

    def _session_options(self, runtime: Any) -> Any:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.options.thread_count  # ORT ignores the affinity mask
        options.inter_op_num_threads = 1
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", str(int(self.options.spinning))
        )
        options.log_severity_level = ERRORS_ONLY
        return options

    def _signature(self, session: Any, error: type[DeployError]) -> Signature:
        return check_signature(
            ports(session.get_inputs()),
            ports(session.get_outputs()),
            batch=self.options.batch,
            error=error,
        )

    def _check_stamp(self, stamp: dict[str, str], engine: Path) -> None:
        fix = "build it again here: pipeline build"
        if stamp.get(STAMP_TARGET) != self.name:
            raise EngineError(f"{engine} was not built by {self.name}, or is cut short", fix=fix)
        block = stamp.get(STAMP_BLOCK)
        if block != str(self.channel_block):
            built_for = f"a CPU with channel blocks of {block}, here they are {self.channel_block}"
            raise EngineError(f"{engine} was built for {built_for}", fix=fix)
