"""Memory, stream and events of one engine's calls, by pycuda. The primary context is current."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROTATED_INPUTS = 3  # pinned tensors that successive calls copy from
EVENT_PAIRS = 32  # as many successive calls can be timed before the events are read
NON_BLOCKING = 1  # a stream that does not wait for the default one

Array = NDArray[np.float32]


class CallBuffers:
    """One input and one output on the device, pinned host memory, a stream, pairs of events.

    A call copies a batch to the device, puts the work on the stream between two events, copies
    the result back and waits for it.
    """

    def __init__(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> None:
        self._driver = importlib.import_module("pycuda.driver")
        self._device: list[Any] = []
        self._pinned: list[Array] = []
        try:
            self.stream = self._driver.Stream(NON_BLOCKING)
            self.device_input = self._on_device(input_shape)
            self.device_output = self._on_device(output_shape)
            self.staged = self._on_host(input_shape)
            self.output = self._on_host(output_shape)  # of the newest call
            inputs = [self._on_host(input_shape) for _ in range(ROTATED_INPUTS)]
            generator = np.random.default_rng(0)
            for images in inputs:
                images[...] = generator.standard_normal(input_shape, dtype=np.float32)
            self._inputs = itertools.cycle(inputs)
            self._events = [(self._event(), self._event()) for _ in range(EVENT_PAIRS)]
            self.rewind()
        except BaseException:
            self.close()
            raise

    def call(self, work: Callable[[], None], images: Array | None = None) -> None:
        """One call on pinned `images`, or on the next of the resident ones."""
        driver, stream = self._driver, self.stream
        start, end = next(self._next_events)
        host = next(self._inputs) if images is None else images
        driver.memcpy_htod_async(self.device_input, host, stream)
        start.record(stream)
        work()
        end.record(stream)
        driver.memcpy_dtoh_async(self.output, self.device_output, stream)
        stream.synchronize()

    def rewind(self) -> None:
        """Let the next call use the first pair of events."""
        self._next_events = itertools.cycle(self._events)

    def device_ns(self, calls: int) -> NDArray[np.int64]:
        """What the device took for the work of each call since `rewind`, (calls,)."""
        spans_ms = [end.time_since(start) for start, end in self._events[:calls]]
        return np.rint(np.array(spans_ms) * 1e6).astype(np.int64)

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        device, self._device = self._device, []
        pinned, self._pinned = self._pinned, []
        for allocation in device:
            allocation.free()
        for array in pinned:
            array.base.free()  # type: ignore[union-attr]
        # pycuda frees streams and events when nobody holds them any more
        self._events = []
        self._next_events = itertools.cycle(self._events)
        self._inputs = itertools.cycle(())
        self.stream = None

    def _on_device(self, shape: tuple[int, ...]) -> Any:
        self._device.append(self._driver.mem_alloc(4 * int(np.prod(shape))))
        return self._device[-1]

    def _on_host(self, shape: tuple[int, ...]) -> Array:
        self._pinned.append(self._driver.pagelocked_empty(shape, np.float32))
        return self._pinned[-1]

    def _event(self) -> Any:
        return self._driver.Event()
