"""Time limits for what a runtime does; `ended_if_it_hangs` for what it does in our process."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from pipeline.hanging import ended_if_it_hangs
from pipeline.options import CalibrateOptions
from pipeline.run import Context
from targets.base import Engine, Images

TOGETHER = 256  # images that are one thing; a whole split may take its time


def watchdog_s(context: Context) -> float:
    """How long a runtime may take for one thing: a candidate, a build, an answer."""
    return 60 * context.run.options("calibrate", CalibrateOptions).watchdog


def watched(context: Context, doing: str) -> AbstractContextManager[None]:
    """Ends the process, and says so in the run's events, if the runtime does not come back."""

    def note(reason: str) -> None:
        context.run.event("stage failed", stage=context.stage.name, reason=reason)

    again = f"if it needs more time: pipeline run --out {context.run.folder} --watchdog MINUTES"
    return ended_if_it_hangs(watchdog_s(context), doing, fix=again, before_the_end=note)


def together(batch: int) -> int:
    """Images in whole batches that an engine is asked for at once."""
    return max(batch, TOGETHER // batch * batch)


def logits_of(context: Context, engine: Engine, images: Images) -> NDArray[np.float32]:
    """The engine's logits (n, classes) of images (n, C, H, W), n a multiple of its batch."""
    step, found = together(engine.input_shape[0]), []
    for start in range(0, len(images), step):
        with watched(context, "the engine's answer"):
            found.append(engine.infer(images[start : start + step]))
    return np.concatenate(found)
