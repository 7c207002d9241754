from __future__ import annotations

import json

import numpy as np
import pytest

from targets.samples import Samples
from targets.statistics import bootstrap_ci95, percentile_of, required_samples

MS = 1_000_000


def samples_of(wall_ms: list[float], switches: list[int] | None = None) -> Samples:
    """Samples with these wall times; undisturbed unless `switches` says otherwise."""
    wall_ns = np.array([round(ms * MS) for ms in wall_ms], dtype=np.int64)
    return Samples(wall_ns, wall_ns, np.array(switches or [0] * len(wall_ms), dtype=np.int64))


def test_interrupted_calls_are_left_out_of_the_estimate_but_kept() -> None:
    samples = samples_of([1.0, 9.0, 1.0, 1.0], [0, 3, 0, 0])
    assert samples.clean_ms.tolist() == [1.0, 1.0, 1.0]
    assert samples.ms.tolist() == [1.0, 9.0, 1.0, 1.0]
    assert samples.doubts() == ()


def test_when_few_calls_are_clean_all_are_used_and_that_is_said() -> None:
    samples = samples_of([1.0] * 5, [0, 1, 1, 1, 1])
    assert len(samples.clean_ms) == 5
    assert samples.doubts() == ("only 1 of 5 calls ran undisturbed, so all are used",)
    assert samples_of([1.0] * 4, [0, 1, 1, 1]).clean_ms.tolist() == [1.0]


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


def test_samples_are_values() -> None:
    column = np.array([5, 6])
    samples = Samples(column, column, np.zeros(2, int))
    column[0] = 99
    assert samples.wall_ns.tolist() == [5, 6]
    with pytest.raises(ValueError, match="read-only"):
        samples.wall_ns[0] = 1
    assert samples == samples_of([5e-6, 6e-6])
    assert hash(samples) == hash(samples_of([5e-6, 6e-6]))
    assert samples != samples_of([5e-6, 7e-6])


@pytest.mark.parametrize(
    "columns",
    [
        (np.array([1.5]), np.array([1]), np.array([0])),
        (np.array([-1]), np.array([1]), np.array([0])),
        (np.array([1, 2]), np.array([1]), np.array([0])),
        (np.array([[1]]), np.array([[1]]), np.array([[0]])),
    ],
    ids=["fractions", "negative", "lengths", "rank"],
)
def test_impossible_samples_are_refused(columns: tuple[np.ndarray, ...]) -> None:
    with pytest.raises(ValueError, match="Samples|wall_ns"):
        Samples(*columns)


def test_concatenation_keeps_order_and_adds_counters() -> None:
    first = Samples(np.array([1]), np.array([2]), np.array([3]), steal_ticks=4, throttled_us=5)
    both = Samples.concatenate([first, first, samples_of([])])
    assert (both.wall_ns.tolist(), both.cpu_ns.tolist()) == ([1, 1], [2, 2])
    assert (both.involuntary_switches.tolist(), both.steal_ticks) == ([3, 3], 8)
    assert both.throttled_us == 10
    assert len(Samples.concatenate([])) == 0


@pytest.mark.parametrize("wall_ms", [[], [1.0, 2.5, 3.25]], ids=["empty", "some"])
def test_round_trips_through_json_and_bytes(wall_ms: list[float]) -> None:
    plain = samples_of(wall_ms)
    samples = Samples(
        plain.wall_ns, plain.cpu_ns, plain.involuntary_switches, steal_ticks=7, throttled_us=8
    )
    assert Samples.from_json(json.loads(json.dumps(samples.to_json()))) == samples
    assert Samples.from_bytes(samples.to_bytes()) == samples
    assert len(samples.to_bytes()) == 32 + 24 * len(wall_ms)


def test_damaged_bytes_are_refused() -> None:
    blob = samples_of([1.0, 2.0]).to_bytes()
    flipped = bytearray(blob)
    flipped[-9] ^= 1
    for damaged in (b"", blob[:-1], blob + b"\0", b"x" * len(blob), bytes(flipped)):
        with pytest.raises(ValueError, match="stored samples"):
            Samples.from_bytes(damaged)


def test_json_with_other_fields_is_refused() -> None:
    record = samples_of([1.0]).to_json() | {"unit": "s"}
    with pytest.raises(ValueError, match="unit"):
        Samples.from_json(record)


# statistics


def test_the_bootstrap_interval_is_repeatable_and_known() -> None:
    assert bootstrap_ci95([3.0] * 7) == (3.0, 3.0)
    values = list(range(1, 102))
    low, high = bootstrap_ci95(values)
    assert (low, high) == bootstrap_ci95(values)
    # the order statistics 41 and 61 bound the median of 101 values at 95 %
    assert 39 <= low <= 43
    assert 59 <= high <= 63


def test_the_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(10.0, 2.0, 400)
    low, high = bootstrap_ci95(values, np.mean)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_the_bootstrap_in_pieces_covers_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.statistics._DRAWS_AT_ONCE", 25)
    drawn: list[int] = []

    def statistic(rows: np.ndarray, axis: int) -> np.ndarray:
        drawn.append(len(rows))
        return np.asarray(rows.mean(axis=axis))

    bootstrap_ci95(range(10), statistic, resamples=7)
    assert drawn == [2, 2, 2, 1]


def test_the_bootstrap_needs_values() -> None:
    with pytest.raises(ValueError, match="list of values"):
        bootstrap_ci95([])


def test_percentiles_need_samples() -> None:
    assert required_samples(99) == 299
    assert required_samples(90) == 29
    with pytest.raises(ValueError, match="p99 needs 299 samples; there are 298"):
        percentile_of(np.ones(298), 99)
    assert percentile_of(np.arange(300.0), 99) == pytest.approx(296.01)
    with pytest.raises(ValueError, match="between 0 and 100"):
        percentile_of(np.ones(9), 100)
