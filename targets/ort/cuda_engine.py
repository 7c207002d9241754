"""A loaded ONNX Runtime session on the first GPU."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from targets.base import Engine, Images, Logits
from targets.errors import EngineError
from targets.gpu.nvml import GpuMonitor
from targets.ort.session import translated
from targets.samples import Samples
from targets.signature import Signature
from targets.timing import time_calls

ROTATED_INPUTS = 3  # tensors that successive calls rotate over
PIECE = 32  # calls between two readings of NVML


class OrtCudaEngine(Engine):
    """A session with one input and one output bound in the memory of `device`.

    A call is end-to-end: copy a batch from host memory, run, copy the logits back. The bound
    addresses never change, as a captured CUDA graph demands.
    """

    def __init__(
        self,
        runtime: Any,
        session: Any,
        signature: Signature,
        monitor: GpuMonitor,
        *,
        device: str = "cuda",
    ) -> None:
        self.input_shape = signature.input_shape
        self._session, self._monitor = session, monitor
        generator = np.random.default_rng(0)
        resident = [
            generator.standard_normal(self.input_shape, dtype=np.float32)
            for _ in range(ROTATED_INPUTS)
        ]
        self._resident = itertools.cycle(resident)
        logits = np.zeros((self.input_shape[0], signature.classes), np.float32)
        images = np.zeros(self.input_shape, np.float32)
        self._images = runtime.OrtValue.ortvalue_from_numpy(images, device, 0)
        self._logits = runtime.OrtValue.ortvalue_from_numpy(logits, device, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(signature.input_name, self._images)
        self._binding.bind_ortvalue_output(signature.output_name, self._logits)

    def infer_batch(self, images: Images) -> Logits:
        self._check_open()
        with translated(EngineError, "the engine failed"):
            return np.array(self._run(images))

    def call(self) -> None:
        self._check_open()
        self._run(next(self._resident))

    def time_ms(self, n: int) -> Samples:
        self._check_open()
        if n < 1:
            raise ValueError(f"at least one call must be timed, not {n}")
        # NVML takes as long as a short call, so it is read between pieces
        pieces = [min(PIECE, n - done) for done in range(0, n, PIECE)]
        with translated(EngineError, "the engine failed"):
            return Samples.concatenate([self._timed(calls) for calls in pieces])

    def close(self) -> None:
        if self._session is None:
            return
        self._binding = self._images = self._logits = self._session = None
        self._monitor.close()

    def _run(self, images: Images) -> Any:
        """(N, classes) logits of one batch, on the host; ONNX Runtime waits for the device."""
        self._images.update_inplace(images)
        self._session.run_with_iobinding(self._binding)
        return self._logits.numpy()

    def _timed(self, calls: int) -> Samples:
        timed = time_calls(lambda: self._run(next(self._resident)), calls)
        return self._monitor.read().added_to(timed)

    def _check_open(self) -> None:
        if self._session is None:
            raise EngineError("the engine was closed")
