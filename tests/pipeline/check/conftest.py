"""Blocks that follow a script instead of a clock, and networks for the fake target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.check import latency
from pipeline.check.result import CheckResult, Gate, Latency, Subject
from targets.blocks import BlockRun
from targets.fingerprint import Fingerprint, cpu_fingerprint
from targets.samples import Samples
from tests.targets.tiny_onnx import tiny_model

FINGERPRINT = cpu_fingerprint("fake", "fp32", runtime="r", batch=2, threads=1, settings=())
BASE_MS = 2.0


def block(median_ms: float, calls: int = 5) -> Samples:
    """Calls around a median, undisturbed."""
    spread = np.linspace(0.99, 1.01, calls)
    wall_ns = np.round(1e6 * median_ms * spread).astype(np.int64)
    return Samples(wall_ns, wall_ns, np.zeros(calls, np.int64))


def blocks_of(ratios: Sequence[float], *, fingerprint: Fingerprint = FINGERPRINT) -> BlockRun:
    """A baseline of 2 ms and a candidate that takes these multiples of it, process by process."""
    base = tuple(block(BASE_MS) for _ in ratios)
    return BlockRun(
        fingerprint,
        {"candidate": tuple(block(BASE_MS * ratio) for ratio in ratios), "baseline": base},
    )


def noisy(ratio: float, spread: float, seed: int = 0, n: int = 500) -> list[float]:
    """n log-normal ratios around one."""
    generator = np.random.default_rng(seed)
    return [float(x) for x in ratio * np.exp(spread * generator.standard_normal(n))]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[float]], list[str]]:
    """Call it with ratios: that is what the next checks measure, over and over."""
    targets: list[str] = []

    def script(ratios: Iterable[float]) -> list[str]:
        endless = cycle(list(ratios))

        def measure_blocks(
            target: str, options: Any, engines: Mapping[str, Path], **told: Any
        ) -> BlockRun:
            from targets import load_target

            targets.append(target)
            fingerprint = load_target(target, options).fingerprint()
            used: list[float] = []
            for _ in range(told["processes"]):
                used.append(next(endless))
                run = blocks_of(used, fingerprint=fingerprint)
                run = BlockRun(fingerprint, {name: run.blocks[name] for name in engines})
                if told["stop"](run):
                    break
            return run

        monkeypatch.setattr(latency, "measure_blocks", measure_blocks)
        return targets

    return script


@pytest.fixture
def networks(tmp_path: Path) -> dict[str, Path]:
    """ONNX files: base, the same network under another name, other weights, a wider one."""
    made = {
        "base": tiny_model(),
        "same": tiny_model(),
        "other": tiny_model(seed=2),
        "wide": tiny_model(width=32),
    }
    for name, content in made.items():
        (tmp_path / f"{name}.onnx").write_bytes(content)
    return {name: tmp_path / f"{name}.onnx" for name in made}


def result_of(*gates: Gate, **changes: Any) -> CheckResult:
    """A result with these gates."""
    latency_ms = Latency(2.0, (1.9, 2.1), (1.9, 2.0, 2.1), 300)
    values: dict[str, Any] = {
        "at": "2026-01-02T03:04:05+00:00",
        "target": "ort-cpu",
        "fingerprint": FINGERPRINT.to_json(),
        "fingerprint_sha256": FINGERPRINT.digest(),
        "percentile": "p50",
        "confidence": 0.99,
        "processes": 12,
        "seconds": 14.5,
        "candidate": Subject("new.onnx", "a" * 64, latency_ms),
        "baseline": Subject("old.onnx", "b" * 64, latency_ms),
        "gates": gates,
    }
    return CheckResult(**(values | changes))


SLOWER = Gate("slowdown", "regression", "+6.00 %", "at most +2.50 %", 0.06, (0.05, 0.07))
LEVEL = Gate("slowdown", "pass", "+0.10 %", "at most +2.50 %", 0.001, (-0.01, 0.01))
OPEN = Gate(
    "budget", "inconclusive", "4.0 ms", "at most 4 ms", 4.0, (3.9, 4.1), "noise", "too wide"
)
