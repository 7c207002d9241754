"""ONNX Runtime on the CPU: the engine is the graph that it optimised for this kind of machine."""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from targets.base import (
    BuildRecord,
    Engine,
    Images,
    Precision,
    Target,
    TargetOptions,
    TritonServing,
)
from targets.errors import BuildError, DeployError, EngineError
from targets.files import REBUILD, replacing
from targets.fingerprint import Fingerprint, cpu_fingerprint
from targets.machine import cpu_isa
from targets.ort.session import (
    ERRORS_ONLY,
    STAMP_TARGET,
    TRITON_OPTIMISES_NOTHING,
    OrtEngine,
    open_session,
    ports,
    refusals,
    stamp,
    translated,
)
from targets.precision.qdq import QdqForm, calibrate_ranges, cpu_form, fallback_order, to_qdq
from targets.precision.reference import read_onnx
from targets.signature import Signature, check_signature

PROVIDER = "CPUExecutionProvider"
INSTALL = "pip install 'wgates[ort-cpu]'"

# operators that ONNX Runtime computes in integers
INTEGER_KERNELS = (
    "QLinearConv",
    "ConvInteger",
    "QGemm",
    "QLinearMatMul",
    "MatMulInteger",
)

# stamped into the engine: a graph for another CPU family would compute nonsense
STAMP_BLOCK, STAMP_FORM = "wgates.channel_block", "wgates.int8_form"


class OrtCpu(Target):
    """`ort-cpu`: ONNX Runtime's CPU provider, fp32."""

    name = "ort-cpu"
    precision: Precision = "fp32"
    engine_suffix = ".onnx"
    channel_multiple = 8
    takes = frozenset({"batch", "threads", "spinning"})
    packages = ("onnxruntime", "onnxruntime-gpu")
    install = INSTALL

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
            settings=self._settings(),
        )

    def _settings(self) -> tuple[str, ...]:
        """What was chosen, for the fingerprint."""
        return (
            "optimization=all",
            "execution=sequential",
            f"spinning={'on' if self.options.spinning else 'off'}",
            "interval=host end-to-end",
        )

    def build(
        self,
        onnx: bytes | Path,
        out: Path,
        batches: Iterable[Images] = (),
        *,
        keep_fp32: Collection[str] = (),
    ) -> BuildRecord:
        self._save_optimised(onnx, out)
        return BuildRecord(out)

    def _save_optimised(self, onnx: bytes | Path, out: Path) -> dict[str, Any]:
        """Write the optimised graph to `out`; return what `_checked` says of it."""
        runtime = self._runtime()
        options = self._session_options(runtime)
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        with replacing(out) as partial:
            options.optimized_model_filepath = str(partial)
            with refusals(onnx):
                session = open_session(runtime, onnx, options, (PROVIDER,), BuildError)
            self._signature(session, BuildError)
            facts = self._checked(partial)
            stamp(partial, self._stamp())
        return facts

    def _stamp(self) -> dict[str, str]:
        """Where the engine may run."""
        return {STAMP_TARGET: self.name, STAMP_BLOCK: str(self.channel_block)}

    def _checked(self, optimised: Path) -> dict[str, Any]:
        """Facts about an optimised graph; BuildError if it is not what the target stands for."""
        return {}

    def load(self, engine: Path) -> Engine:
        runtime = self._runtime()
        options = self._session_options(runtime)
        # the file is optimised already: exactly what was built and verified is what runs
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        with translated(EngineError, f"cannot load {engine}"):
            session = open_session(runtime, engine, options, (PROVIDER,), EngineError)
        self._check_stamp(session.get_modelmeta().custom_metadata_map, engine)
        return OrtEngine(runtime, session, self._signature(session, EngineError))

    def triton(self) -> TritonServing:
        asleep = "measured with idle threads asleep; in Triton they spin"
        return TritonServing(
            "onnxruntime",
            parameters={
                "execution_mode": "0",  # sequential
                "intra_op_thread_count": str(self.options.thread_count),
                "inter_op_thread_count": "1",
            },
            graph_level=TRITON_OPTIMISES_NOTHING,
            needs=(
                f"the engine lays channels out in blocks of {self.channel_block}, and its logits "
                "are wrong on a CPU with other blocks: serve it on CPUs like the certified one",
            ),
            doubts=() if self.options.spinning else (asleep,),
        )

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
        if stamp.get(STAMP_TARGET) != self.name:
            raise EngineError(
                f"{engine} was not built by {self.name}, or is cut short", fix=REBUILD
            )
        block = stamp.get(STAMP_BLOCK)
        if block != str(self.channel_block):
            built_for = f"a CPU with channel blocks of {block}, here they are {self.channel_block}"
            raise EngineError(f"{engine} was built for {built_for}", fix=REBUILD)


class OrtCpuInt8(OrtCpu):
    """`ort-cpu-int8`: the same provider on a Q/DQ graph, which it turns into integer kernels."""

    name = "ort-cpu-int8"
    precision: Precision = "int8"
    # measured with 3x3 convolutions on AVX-512 VNNI: time rises with every 16th output channel and
    # every 4th input channel, and a width that is no multiple of 4 costs a quarter more than the
    # next one that is; the block of the integer kernels is thus that of the nchwc kernels
    channel_multiple = 8

    def build(
        self,
        onnx: bytes | Path,
        out: Path,
        batches: Iterable[Images] = (),
        *,
        keep_fp32: Collection[str] = (),
    ) -> BuildRecord:
        self._runtime()
        source = read_onnx(onnx)
        ranges = calibrate_ranges(source, batches)
        quantized = to_qdq(source, ranges, self.form, keep_fp32=keep_fp32)
        facts = self._save_optimised(quantized.onnx, out)
        return BuildRecord(out, quantized.kept_fp32, {**quantized.facts, **facts})

    def fallback_order(self, onnx: bytes | Path, batches: Iterable[Images]) -> tuple[str, ...]:
        self._runtime()
        return fallback_order(read_onnx(onnx), list(batches), self.form)

    @property
    def form(self) -> QdqForm:
        """How this CPU's kernels want their numbers."""
        return cpu_form()

    def _stamp(self) -> dict[str, str]:
        return {**super()._stamp(), STAMP_FORM: self.form.name.lower()}

    def _check_stamp(self, stamp: dict[str, str], engine: Path) -> None:
        super()._check_stamp(stamp, engine)
        # the other way round it would compute the same everywhere
        if self.form is QdqForm.NARROW and stamp.get(STAMP_FORM) != self._stamp()[STAMP_FORM]:
            raise EngineError(
                f"{engine} has int8 weights of 8 bits, with which this CPU's kernels saturate",
                fix=REBUILD,
            )

    def _settings(self) -> tuple[str, ...]:
        return (*super()._settings(), f"form={self.form.name.lower()}")

    def _checked(self, optimised: Path) -> dict[str, Any]:
        onnx = importlib.import_module("onnx")
        operators = Counter(node.op_type for node in onnx.load(optimised).graph.node)
        kernels = {name: operators[name] for name in INTEGER_KERNELS if operators[name]}
        if not kernels:
            raise BuildError(
                "ONNX Runtime computes no node of this network in int8",
                fix="keep fewer nodes in fp32, or choose ort-cpu",
            )
        convolutions = operators["Conv"] + operators["FusedConv"]
        return {"int8_kernels": kernels, "fp32_convolutions": convolutions}
