from __future__ import annotations

import json
from typing import Literal

import numpy as np
import pytest

from targets.samples import Samples

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


def test_known_companions_on_the_gpu_are_no_foreigners() -> None:
    ones = np.ones(3, np.int64)
    found = Samples(ones, ones, ones, gpu_foreign=np.array([2, 1, 0]))
    assert found.beside(1).gpu_foreign is not None
    np.testing.assert_array_equal(found.beside(1).gpu_foreign, [1, 0, 0])
    plain = Samples(ones, ones, ones)
    assert plain.beside(1) == plain
