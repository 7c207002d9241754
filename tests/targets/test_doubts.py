from __future__ import annotations

import numpy as np
import pytest

from targets.samples import Samples

MS = 1_000_000


def samples_of(wall_ms: list[float], **columns: list[int]) -> Samples:
    """Undisturbed samples with these wall times and optional columns."""
    wall_ns = np.array([round(ms * MS) for ms in wall_ms], dtype=np.int64)
    arrays = {name: np.array(column, dtype=np.int64) for name, column in columns.items()}
    return Samples(wall_ns, wall_ns, np.zeros_like(wall_ns), **arrays)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("samples", "word"),
    [
        (samples_of([1.0, 1.0, 2.0, 2.0]), "spreads over 67%"),
        (samples_of([0.001] * 9), "Python's own share"),
        (Samples(*[np.full(3, MS)] * 2, np.zeros(3, int), throttled_us=1500), "for 1.5 ms"),
        (Samples(*[np.full(3, MS)] * 2, np.zeros(3, int), steal_ticks=100), "hypervisor"),
        (samples_of([]), "no samples"),
    ],
)
def test_samples_state_their_doubts(samples: Samples, word: str) -> None:
    (doubt,) = samples.doubts()
    assert word in doubt


@pytest.mark.parametrize(
    ("columns", "doubt"),
    [
        (
            {"gpu_throttle": [0x24, 0x4, 0x1, 0x2]},
            "the GPU was throttled during 50% of the calls (power cap, "
            "thermal slowdown by software)",
        ),
        (
            {"gpu_foreign": [0, 2, 0, 1]},
            "up to 2 foreign processes were on the GPU during 50% of the calls",
        ),
        (
            {"gpu_mhz": [1000, 1000, 1500, 1500]},
            "the GPU's clock moved between 1000 and 1500 MHz",
        ),
    ],
)
def test_the_gpu_gives_reasons_for_doubt(columns: dict[str, list[int]], doubt: str) -> None:
    assert samples_of([1.0] * 4, **columns).doubts() == (doubt,)


def test_an_idle_or_steady_gpu_gives_none() -> None:
    quiet = {"gpu_throttle": [0x1, 0x2, 0x0], "gpu_foreign": [0] * 3, "gpu_mhz": [1980, 1965, 1980]}
    assert samples_of([1.0] * 3, **quiet).doubts() == ()
