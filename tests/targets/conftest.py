"""Fixtures for the target tests: engines that follow a script, on a clock that they move."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from targets.base import Engine, Images, Logits, TargetOptions
from targets.ort.cpu import OrtCpu
from targets.samples import Samples

from .tiny_onnx import tiny_model


class FakeClock:
    """Stands for the clocks and counters that the timing loop reads."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.switches = 0
        self.steal_ticks = 0
        self.throttled_us = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def getrusage(self, who: int) -> FakeClock:
        return self

    @property
    def ru_nivcsw(self) -> int:
        return self.switches


class ScriptedEngine(Engine):
    """Call i lasts `duration_ns(i)` on the fake clock; `log` gets the name at every batch."""

    def __init__(
        self, name: str, clock: FakeClock, log: list[str], *, duration_ns: Callable[[int], int]
    ) -> None:
        self.input_shape = (1, 3, 8, 8)
        self.name, self.clock, self.log = name, clock, log
        self.duration_ns = duration_ns
        self.calls = 0

    def infer_batch(self, images: Images) -> Logits:
        return np.zeros((1, 5), np.float32)

    def call(self) -> None:
        self.clock.now_ns += self.duration_ns(self.calls)
        self.calls += 1

    def time_ms(self, n: int) -> Samples:
        self.log.append(self.name)
        return super().time_ms(n)

    def close(self) -> None:
        """There is nothing to free."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """A fake clock that the timing loop and the estimates made from it read."""
    fake = FakeClock()
    monkeypatch.setattr("targets.timing.perf_counter_ns", fake.perf_counter_ns)
    for name in ("perf_counter_ns", "getrusage"):
        monkeypatch.setattr(f"targets.loop.{name}", getattr(fake, name))
    monkeypatch.setattr("targets.loop.process_time_ns", fake.perf_counter_ns)
    for name in ("steal_ticks", "throttled_us"):
        monkeypatch.setattr(f"targets.machine.{name}", functools.partial(getattr, fake, name))
    return fake


@pytest.fixture
def ort_engine(tmp_path: Path) -> Path:
    """The tiny network of batch 2, built by `ort-cpu`."""
    target = OrtCpu(TargetOptions(batch=2, threads=1))
    if target.is_available():
        pytest.skip("; ".join(target.is_available()))
    return target.build(tiny_model(), tmp_path / "tiny.onnx").engine
