"""A loaded TensorRT engine on the first GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from targets.base import Engine, Images, Logits
from targets.errors import EngineError
from targets.files import REBUILD
from targets.gpu.buffers import EVENT_PAIRS, CallBuffers
from targets.gpu.cuda import Graph, current_context, translated
from targets.gpu.nvml import GpuMonitor
from targets.samples import Samples
from targets.signature import Port, Signature, check_signature
from targets.timing import time_calls
from targets.trt.log import collected_errors, process_log


@dataclass(frozen=True)
class RunSettings:
    """How a plan is run."""

    batch: int
    device_time: bool = False  # samples are judged by the device's time, not by the caller's
    cuda_graph: bool = False


class TensorRtEngine(Engine):
    """A plan with its execution context and buffers.

    A call is end-to-end: copy a batch from pinned host memory, enqueue, copy the logits back,
    wait. Two events enclose the enqueue alone, so that every call is timed both ways. A CUDA
    graph holds the enqueue alone, captured by us for both modules: TensorRT has no such option.
    """

    def __init__(self, trt: Any, plan: bytes, settings: RunSettings, monitor: GpuMonitor) -> None:
        self._trt, self._monitor = trt, monitor
        self._judged_by_device = settings.device_time
        self._is_open = True
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._buffers: CallBuffers | None = None
        self._graph: Graph | None = None
        try:
            with current_context(), translated("the engine cannot be prepared"):
                self._deserialise(plan)
                self._bind(_signature(trt, self._engine, settings.batch))
                self._prepare(settings.cuda_graph)
        except BaseException as error:
            try:
                self.close()
            except EngineError as second:  # of a device that failed; the first reason counts
                error.add_note(str(second))
            raise

    def infer_batch(self, images: Images) -> Logits:
        buffers = self._opened()
        with current_context(), translated("the engine failed"):
            np.copyto(buffers.staged, images)
            buffers.call(self._work, buffers.staged)
            return buffers.output.copy()

    def call(self) -> None:
        buffers = self._opened()
        with current_context(), translated("the engine failed"):
            buffers.call(self._work)

    def time_ms(self, n: int) -> Samples:
        buffers = self._opened()
        if n < 1:
            raise ValueError(f"at least one call must be timed, not {n}")
        # NVML takes as long as a short call, so it is read between pieces
        pieces = [min(EVENT_PAIRS, n - done) for done in range(0, n, EVENT_PAIRS)]
        with current_context(), translated("the engine failed"):
            return Samples.concatenate([self._timed(buffers, calls) for calls in pieces])

    def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        try:
            with current_context(), translated("the engine cannot be freed"):
                self._free()
        finally:
            self._monitor.close()

    def _free(self) -> None:
        graph, self._graph = self._graph, None
        buffers, self._buffers = self._buffers, None
        if graph is not None:
            graph.close()
        # a context must not outlive its engine, nor an engine its runtime
        self._context = None
        self._engine = None
        self._runtime = None
        if buffers is not None:
            buffers.close()

    def _deserialise(self, plan: bytes) -> None:
        trt = self._trt
        with collected_errors(trt) as errors:
            self._runtime = trt.Runtime(process_log(trt))
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is not None:
                self._context = _execution_context(trt, self._engine)
            if self._context is None:
                words = f"{trt.__name__} cannot load the plan on this GPU: {errors()}"
                raise EngineError(words, fix=REBUILD)

    def _bind(self, signature: Signature) -> None:
        self.input_shape = signature.input_shape
        buffers = CallBuffers(signature.input_shape, (self.input_shape[0], signature.classes))
        self._buffers = buffers
        # no local name for the context: a traceback would keep it alive beyond `close`
        is_bound = (
            self._context.set_input_shape(signature.input_name, signature.input_shape)
            and self._context.set_tensor_address(signature.input_name, int(buffers.device_input))
            and self._context.set_tensor_address(signature.output_name, int(buffers.device_output))
        )
        if not is_bound:
            raise EngineError(
                f"{self._trt.__name__} refused the shape {signature.input_shape}", fix=REBUILD
            )

    def _prepare(self, cuda_graph: bool) -> None:
        """Call once, as TensorRT-RTX compiles its kernels then; capture the graph after that."""
        buffers = self._opened()
        self._work: Callable[[], None] = self._enqueue
        buffers.call(self._work)
        if not cuda_graph:
            return
        # TensorRT-RTX can tell in advance; TensorRT fails to capture
        if hasattr(self._context, "is_stream_capturable") and not (
            self._context.is_stream_capturable(buffers.stream.handle)
        ):
            raise EngineError("this engine cannot be captured", fix="leave out --cuda-graph")
        self._graph = Graph(buffers.stream, self._enqueue)
        self._work = self._graph.launch
        buffers.call(self._work)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._opened().stream.handle):
            raise EngineError(f"{self._trt.__name__} could not enqueue the network", fix=REBUILD)

    def _timed(self, buffers: CallBuffers, calls: int) -> Samples:
        buffers.rewind()
        timed = time_calls(lambda: buffers.call(self._work), calls)
        judged: Literal["wall", "device"] = "device" if self._judged_by_device else "wall"
        timed = replace(timed, device_ns=buffers.device_ns(calls), judged=judged)
        return self._monitor.read().added_to(timed)

    def _opened(self) -> CallBuffers:
        if self._buffers is None:
            raise EngineError("the engine was closed")
        return self._buffers


def _execution_context(trt: Any, engine: Any) -> Any:
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    # by default kernels for the very shape replace general ones in the background, while we time
    eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.dynamic_shapes_kernel_specialization_strategy = eager
    return engine.create_execution_context(config)


def _signature(trt: Any, engine: Any, batch: int) -> Signature:
    """The engine's input and output, with a dynamic batch taken as `batch`."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
    return check_signature(
        [_port(trt, engine, name, batch) for name in names if is_input[name]],
        [_port(trt, engine, name, batch) for name in names if not is_input[name]],
        batch=batch,
        error=EngineError,
    )


def _port(trt: Any, engine: Any, name: str, batch: int) -> Port:
    first, *others = tuple(engine.get_tensor_shape(name))
    shape = (batch if first == -1 else first, *others)
    return Port(name, shape, engine.get_tensor_dtype(name) == trt.DataType.FLOAT)
