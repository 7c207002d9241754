"""`Pool`: a bundle's engines, each used by one thread at a time, and a queue that has an end."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Self, TypeVar

import numpy as np

from examples.serve.protocol import RequestError
from pipeline.bundle import Bundle
from pipeline.errors import BundleError
from targets.base import Engine

WARMUP_CALLS = 10

_T = TypeVar("_T")


class Pool:
    """Engines that wait for work; used in a `with` block, leaving it frees them."""

    def __init__(self, bundle: Bundle, instances: int, *, waiting: int, any_fingerprint: bool):
        self._stack = ExitStack()
        self._idle: queue.SimpleQueue[Engine] = queue.SimpleQueue()
        self._places = instances + waiting
        with ExitStack() as opening:
            for _ in range(instances):
                engine = opening.enter_context(bundle.load(any_fingerprint=any_fingerprint))
                _warm_up(engine, len(bundle.manifest.classes))
                self._idle.put(engine)
            # one thread for each engine: who gets a thread finds an engine idle
            self._threads = opening.enter_context(ThreadPoolExecutor(instances, "engine"))
            self._stack = opening.pop_all()

    @property
    def free(self) -> int:
        """How many more requests would be let in."""
        return self._places

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among those served and waiting; RequestError with status 503 if all are taken.

        For the event loop's thread only.
        """
        if not self._places:
            raise RequestError("too many requests are waiting", status=503, fix="try again later")
        self._places -= 1
        try:
            yield
        finally:
            self._places += 1

    async def run(self, work: Callable[[Engine], _T]) -> _T:
        """What `work` returns, called with an engine on a thread of its own."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._with_engine, work)

    def _with_engine(self, work: Callable[[Engine], _T]) -> _T:
        engine = self._idle.get()
        try:
            return work(engine)
        finally:
            self._idle.put(engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()


def _warm_up(engine: Engine, classes: int) -> None:
    """First calls, which are slow; BundleError unless there is a logit for each class."""
    images = np.zeros(engine.input_shape, np.float32)
    for _ in range(WARMUP_CALLS):
        logits = engine.infer(images)
    if logits.shape[1] != classes:
        raise BundleError(
            f"the engine gives {logits.shape[1]} logits, the manifest names {classes} classes",
            fix="make the bundle again: pipeline package RUN",
        )
