"""The fake target, but its calls and builds take their time asleep, as on a device of its own.

Found by its entry point where this folder is on PYTHONPATH: many such devices fit one machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from targets.base import BuildRecord, Engine, Images
from targets.fake import FakeEngine, FakeTarget
from targets.samples import Samples

BUILD_S = float(os.environ.get("SLEEPING_BUILD_S", "0.4"))


class SleepingTarget(FakeTarget):
    name = "sleeping"

    def build(
        self,
        onnx: bytes | Path,
        out: Path,
        batches: Iterable[Images] = (),
        *,
        keep_fp32: Collection[str] = (),
    ) -> BuildRecord:
        time.sleep(BUILD_S)
        return super().build(onnx, out, batches, keep_fp32=keep_fp32)

    def load(self, engine: Path) -> Engine:
        loaded = super().load(engine)
        assert isinstance(loaded, FakeEngine)
        return SleepingEngine(loaded)


class SleepingEngine(Engine):
    def __init__(self, engine: FakeEngine) -> None:
        self._engine, self.input_shape = engine, engine.input_shape

    def infer_batch(self, images: Images) -> Images:
        return self._engine.infer_batch(images)

    def call(self) -> None:
        self.time_ms(1)

    def time_ms(self, n: int) -> Samples:
        samples = self._engine.time_ms(n)
        time.sleep(float(np.sum(samples.wall_ns)) / 1e9)
        return samples

    def close(self) -> None:
        self._engine.close()
