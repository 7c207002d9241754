"""A stand-in for the running half of the module tensorrt, on top of `fake_cuda`."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from .fake_cuda import FakeGpu, flat

WORK_MS = 1.5  # that the network takes on the device
CLASSES = 5


class Logger:
    ERROR, INTERNAL_ERROR = "error", "internal error"


class ExecutionContext:
    can_enqueue = True

    def __init__(self, gpu: FakeGpu, shapes: dict[str, tuple[int, ...]]) -> None:
        self.gpu, self.shapes = gpu, shapes
        self.addresses: dict[str, int] = {}
        self.token = object()  # `self` in the list would keep this alive
        gpu.born(self.token)

    def __del__(self) -> None:
        self.gpu.freed(self.token)

    def set_input_shape(self, name: str, given: tuple[int, ...]) -> bool:
        return given[1:] == self.shapes[name][1:]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address in self.gpu.memory

    def execute_async_v3(self, handle: int) -> bool:
        gpu = self.gpu
        images, logits = (gpu.memory[self.addresses[name]] for name in self.shapes)

        def work() -> None:
            means = images.content.view(np.float32).reshape(2, -1).mean(axis=1)
            gpu.seen_inputs.append(float(means[0]))
            result = means[:, None] + np.arange(CLASSES, dtype=np.float32)
            np.copyto(logits.content, flat(result))
            gpu.clock_ms += WORK_MS

        gpu.memory[handle].put(work)
        return self.can_enqueue


class LoadedEngine:
    num_io_tensors = 2

    def __init__(self, gpu: FakeGpu, shapes: dict[str, tuple[int, ...]]) -> None:
        self.gpu, self.shapes = gpu, shapes

    def get_tensor_name(self, index: int) -> str:
        return list(self.shapes)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "images" else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def get_tensor_dtype(self, name: str) -> str:
        return "float"

    def create_execution_context(self) -> ExecutionContext:
        return ExecutionContext(self.gpu, self.shapes)


def fake_tensorrt(gpu: FakeGpu, shape: tuple[int, ...]) -> ModuleType:
    """Its engines give the mean of each of two images plus 0, 1, 2, ...; b"plan" is its plan."""
    module = ModuleType("tensorrt")
    shapes = {"images": shape, "logits": (shape[0], CLASSES)}

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, plan: bytes) -> LoadedEngine | None:
            if plan == b"plan":
                return LoadedEngine(gpu, shapes)
            self.log.log("error", "the plan is for SM80, this is SM90")
            return None

    vars(module).update(
        __version__="11.4.0",
        ILogger=Logger,
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        DataType=SimpleNamespace(FLOAT="float"),
    )
    return module
