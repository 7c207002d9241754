from __future__ import annotations

import json
from typing import Literal

import numpy as np
import pytest

from targets.samples import Samples
from targets.statistics import (
    bootstrap_ci95,
    percentile_of,
    required_samples,
    student_quantile,
)

MS = 1_000_000
EVERY_COLUMN = (
    "wall_ns",
    "cpu_ns",
    "involuntary_switches",
    "withheld",
    "device_ns",
    "gpu_mhz",
    "gpu_mw",
    "gpu_throttle",
    "gpu_foreign",
)


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
    assert len(samples.to_bytes()) == 40 + 24 * len(wall_ms)


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


# optional columns


def gpu_samples(wall_ms: list[float], **columns: list[int]) -> Samples:
    """Samples with these wall times and optional columns."""
    plain = samples_of(wall_ms)
    arrays = {name: np.array(column, dtype=np.int64) for name, column in columns.items()}
    return Samples(plain.wall_ns, plain.cpu_ns, plain.involuntary_switches, **arrays)  # type: ignore[arg-type]


def full(n: int, *, judged: Literal["wall", "device"]) -> Samples:
    """Samples with every column, no two alike."""
    columns = [np.arange(n) + 10 * index for index in range(9)]
    named = dict(zip(EVERY_COLUMN, columns, strict=True))
    return Samples(**named, steal_ticks=1, throttled_us=2, judged=judged)


@pytest.mark.parametrize("judged", ["wall", "device"])
@pytest.mark.parametrize("n", [0, 3])
def test_every_column_round_trips(n: int, judged: Literal["wall", "device"]) -> None:
    samples = full(n, judged=judged)
    for again in (
        Samples.from_json(json.loads(json.dumps(samples.to_json()))),
        Samples.from_bytes(samples.to_bytes()),
    ):
        assert again == samples
        assert again.judged == judged
        for index, name in enumerate(EVERY_COLUMN):
            assert getattr(again, name).tolist() == [10 * index + i for i in range(n)]
    assert len(samples.to_bytes()) == 40 + 72 * n


@pytest.mark.parametrize("name", EVERY_COLUMN[3:])
def test_one_optional_column_round_trips_alone(name: str) -> None:
    samples = gpu_samples([1.0, 2.0], **{name: [3, 4]})
    again = Samples.from_bytes(samples.to_bytes())
    others = [getattr(again, other) for other in EVERY_COLUMN[3:] if other != name]
    assert getattr(again, name).tolist() == [3, 4]
    assert others == [None] * 5
    assert Samples.from_json(samples.to_json()) == samples
    assert samples != samples_of([1.0, 2.0])


def test_device_time_judges_where_asked() -> None:
    columns = full(3, judged="wall").to_json() | {"device_ns": [4 * MS, 6 * MS, 5 * MS]}
    by_wall = Samples.from_json(columns)
    by_device = Samples.from_json(columns | {"judged": "device", "involuntary_switches": [0, 1, 0]})
    assert by_wall.ms.tolist() == [0.0, 1e-6, 2e-6]
    assert by_device.ms.tolist() == [4.0, 6.0, 5.0]
    assert by_device.split(2)[1].ms.tolist() == [5.0]


def test_device_time_is_needed_to_judge_by_it() -> None:
    record = samples_of([1.0]).to_json()
    with pytest.raises(ValueError, match="need device_ns"):
        Samples.from_json(record | {"judged": "device"})
    with pytest.raises(ValueError, match="not 'sun'"):
        Samples.from_json(record | {"judged": "sun"})
    with pytest.raises(ValueError, match="need the columns cpu_ns"):
        Samples.from_json(record | {"cpu_ns": None})


def test_every_column_concatenates_and_splits() -> None:
    samples = full(4, judged="device")
    pieces = samples.split(3)
    assert [len(piece) for piece in pieces] == [3, 1]
    joined = Samples.concatenate(pieces)
    assert joined.judged == "device"
    for name in EVERY_COLUMN:
        assert getattr(joined, name).tolist() == getattr(samples, name).tolist()
    assert (joined.steal_ticks, joined.throttled_us) == (0, 0)


@pytest.mark.parametrize(
    "other",
    [gpu_samples([1.0]), gpu_samples([1.0], device_ns=[1], gpu_mhz=[5])],
    ids=["missing", "more"],
)
def test_samples_with_other_columns_do_not_concatenate(other: Samples) -> None:
    with pytest.raises(ValueError, match="different columns"):
        Samples.concatenate([gpu_samples([1.0], device_ns=[1]), other])


def test_the_first_calls_can_be_left_out() -> None:
    rest = full(4, judged="device").after(1)
    for index, name in enumerate(EVERY_COLUMN):
        assert getattr(rest, name).tolist() == [10 * index + i for i in (1, 2, 3)]
    assert (rest.steal_ticks, rest.throttled_us, rest.judged) == (1, 2, "device")


def test_calls_that_were_kept_from_the_cpu_are_left_out() -> None:
    samples = gpu_samples([1.0, 9.0, 1.0, 1.0], withheld=[0, 1, 0, 0])
    assert samples.clean.tolist() == [True, False, True, True]
    assert samples.clean_ms.tolist() == [1.0, 1.0, 1.0]


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
    assert gpu_samples([1.0] * 4, **columns).doubts() == (doubt,)


def test_an_idle_or_steady_gpu_gives_none() -> None:
    quiet = {"gpu_throttle": [0x1, 0x2, 0x0], "gpu_foreign": [0] * 3, "gpu_mhz": [1980, 1965, 1980]}
    assert gpu_samples([1.0] * 3, **quiet).doubts() == ()


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


def test_the_interval_of_few_values_covers_as_often_as_that_of_many() -> None:
    generator = np.random.default_rng(4)
    for n, fewest in ((8, 0.93), (30, 0.92)):
        drawn = generator.standard_normal((300, n))
        intervals = [bootstrap_ci95(row, resamples=400) for row in drawn]
        assert fewest <= np.mean([low <= 0.0 <= high for low, high in intervals]) <= 0.99


@pytest.mark.parametrize(("freedom", "quantile"), [(3, 3.182), (7, 2.365), (30, 2.042)])
def test_students_quantiles_agree_with_tables(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, rel=0.01)


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
