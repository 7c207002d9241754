"""A PyTorch module as an engine, timed as the engines of the GPU targets are."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch

from targets.base import Engine, Images, Logits
from targets.gpu.nvml import GpuMonitor
from targets.samples import Samples
from targets.timing import time_calls

ROTATED_INPUTS = 3
PIECE = 32  # calls between two readings of NVML


class TorchEngine(Engine):
    """Copies from pinned memory, runs, copies back and waits; events enclose the run alone."""

    def __init__(
        self,
        module: torch.nn.Module,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        monitor: GpuMonitor,
    ) -> None:
        """`module` lies on the GPU and has parameters of type `dtype`."""
        self.input_shape = shape
        self._monitor = monitor
        self._module, self._dtype = module, dtype
        inputs = [torch.randn(shape).pin_memory() for _ in range(ROTATED_INPUTS)]
        self._inputs = itertools.cycle(inputs)
        self._staged = torch.empty(shape).pin_memory()
        self._device_input = torch.empty(shape, device="cuda")
        self._events = [self._pair() for _ in range(PIECE)]
        self._next_events = itertools.cycle(self._events)

    def infer_batch(self, images: Images) -> Logits:
        self._staged.copy_(torch.from_numpy(images))
        return np.array(self._run(self._staged).numpy())

    def call(self) -> None:
        self._run(next(self._inputs))

    def time_ms(self, n: int) -> Samples:
        pieces = [min(PIECE, n - done) for done in range(0, n, PIECE)]
        return Samples.concatenate([self._timed(calls) for calls in pieces])

    def close(self) -> None:
        self._monitor.close()

    def _timed(self, calls: int) -> Samples:
        self._next_events = itertools.cycle(self._events)
        timed = time_calls(self.call, calls)
        spans_ms = [start.elapsed_time(end) for start, end in self._events[:calls]]
        device_ns = np.rint(np.array(spans_ms) * 1e6).astype(np.int64)
        return self._monitor.read().added_to(replace(timed, device_ns=device_ns))

    @torch.inference_mode()
    def _run(self, images: torch.Tensor) -> torch.Tensor:
        """(N, classes) logits on the host."""
        start, end = next(self._next_events)
        self._device_input.copy_(images, non_blocking=True)
        start.record()
        logits = self._module(self._device_input.to(self._dtype)).float()
        end.record()
        return logits.cpu()  # waits

    @staticmethod
    def _pair() -> tuple[torch.cuda.Event, torch.cuda.Event]:
        return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
