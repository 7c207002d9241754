"""A runtime that never comes back: the process ends with one line and its fix.

Nothing can be raised into a call that hangs inside a runtime: an exception waits until it returns.
So another thread ends the process, which costs a run what a kill costs it, the stage's last step.
A `Watch` puts such a limit on all that a runtime does in this process.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import EXIT_FAILED, EngineError, in_words
from targets.base import BuildRecord, Engine, Images, Logits, Target

GRACE_S = 5.0
TOGETHER = 256  # images that are one thing; a whole split may take its time
MINUTES = 10.0  # of one thing, where nobody chose
LONGER = "if it needs more time, give it: --watchdog MINUTES"


@contextmanager
def ended_if_it_hangs(
    limit_s: float, doing: str, *, fix: str, before_the_end: Callable[[str], None]
) -> Iterator[None]:
    """Ends this process if the block takes longer; `doing` is what it does, for the error.

    `before_the_end` is called with the reason, from another thread. A call that keeps Python's lock
    while it hangs is ended a little later and without words, by a traceback: that takes no Python.
    """
    error = EngineError(
        f"{doing} did not come back within {limit_s / 60:g} minutes",
        fix=fix,
    )

    def end() -> None:
        try:
            sys.stderr.write(in_words(error) + "\n")
            before_the_end(error.message)
        finally:
            os._exit(EXIT_FAILED)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    faulthandler.dump_traceback_later(limit_s + GRACE_S, exit=True, file=2)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()


def _nothing(reason: str) -> None:
    """Nobody has to be told."""


@dataclass(frozen=True)
class Watch:
    """How long a runtime may take for one thing in this process: a build, a load, an answer."""

    limit_s: float = 60 * MINUTES
    fix: str = LONGER
    before_the_end: Callable[[str], None] = _nothing

    def over(self, doing: str) -> AbstractContextManager[None]:
        """Ends the process if the block takes longer."""
        return ended_if_it_hangs(
            self.limit_s, doing, fix=self.fix, before_the_end=self.before_the_end
        )

    def build(
        self,
        target: Target,
        onnx: bytes | Path,
        out: Path,
        batches: Sequence[Images] = (),
        *,
        keep_fp32: Collection[str] = (),
    ) -> BuildRecord:
        with self.over(f"building {out.name}"):
            return target.build(onnx, out, batches, keep_fp32=keep_fp32)

    def load(self, target: Target, engine: Path) -> Engine:
        with self.over(f"loading {engine.name}"):
            return target.load(engine)

    def infer(self, engine: Engine, images: Images) -> Logits:
        """(n, C, H, W) images -> (n, classes) logits; n images take as long as they take."""
        step, found = together(engine.input_shape[0]), []
        for start in range(0, len(images), step):
            with self.over("the engine's answer"):
                found.append(engine.infer(images[start : start + step]))
        return np.concatenate(found)


def together(batch: int) -> int:
    """Images in whole batches that an engine is asked for at once."""
    return max(batch, TOGETHER // batch * batch)
