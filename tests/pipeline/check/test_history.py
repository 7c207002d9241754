"""The history file, what was accepted in it, and steps found in a series."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.check.history import (
    Entry,
    accepted_level,
    append_history,
    read_history,
    step_notes,
)
from pipeline.check.steps import FEWEST, Step, steps
from pipeline.errors import DeployError

from .conftest import LEVEL, SLOWER, result_of


def entry(slowdown: float | None = 0.0, ms: float = 2.0, **changes: str) -> Entry:
    made = vars(Entry.of(result_of(LEVEL))) | {"slowdown": slowdown, "candidate_ms": ms}
    return Entry(**(made | changes))


def test_an_entry_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "history.jsonl"
    first = Entry.of(result_of(SLOWER, accepted="new head"))
    second = Entry.of(result_of(LEVEL, baseline=None))
    append_history(path, first)
    append_history(path, second)
    assert len(path.read_text().splitlines()) == 2
    assert read_history(path) == (first, second)
    assert (first.verdict, first.accepted, first.slowdown) == ("pass", "new head", 0.06)
    assert second.baseline_sha256 is None
    assert read_history(None) == read_history(tmp_path / "none") == ()


def test_checks_at_the_same_time_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    one = entry(candidate="x" * 5000)
    writers = [
        threading.Thread(target=lambda: [append_history(path, one) for _ in range(20)])
        for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert read_history(path) == (one,) * 80


def test_a_line_that_another_check_is_still_writing_is_not_taken_for_cut_off(
    tmp_path: Path,
) -> None:
    path = tmp_path / "history.jsonl"
    append_history(path, entry())
    line = path.read_text()
    writer = threading.Thread(target=append_history, args=(path, entry()))
    with path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(line[:100])
        other.flush()
        writer.start()
        writer.join(0.2)
        assert writer.is_alive()
        other.write(line[100:])
    writer.join()
    assert read_history(path) == (entry(),) * 3


def test_a_history_whose_last_line_was_edited_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    append_history(path, entry())
    path.write_text(path.read_text().rstrip("\n"))
    append_history(path, entry())
    assert read_history(path) == (entry(), entry())


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[1]",
        "{}",
        json.dumps(vars(entry()) | {"candidate_ms": -1}),
        json.dumps(vars(entry()) | {"candidate_ms": "2"}),
        json.dumps(vars(entry()) | {"slowdown": -1.0}),
        json.dumps(vars(entry()) | {"more": 1}),
        json.dumps(vars(entry()) | {"at": 5}),
        json.dumps(vars(entry()) | {"baseline_sha256": ["x"]}),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    append_history(path, entry())
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DeployError, match=r"line 2 of history\.jsonl is damaged"):
        read_history(path)


def test_an_accepted_slowdown_holds_against_the_same_baseline_only() -> None:
    taken = entry(0.06, accepted="new head")
    past = [entry(0.03, accepted="older"), taken, entry(0.2)]
    level, note = accepted_level(past, taken.series)
    assert level == 0.06
    assert note == "a slowdown of 6.0% against this baseline was accepted on 2026-01-02: new head"
    assert accepted_level(past, ("other", *taken.series[1:])) == (0.0, "")
    assert accepted_level([entry(0.2)], taken.series) == (0.0, "")


# steps --------------------------------------------------------------------------------------------


def noise(n: int, seed: int = 0) -> np.ndarray:
    return 0.005 * np.random.default_rng(seed).standard_normal(n)


def test_a_step_is_found_where_it_is() -> None:
    series = noise(40)
    series[25:] += 0.03
    (step,) = steps(series.tolist())
    assert step.index == 25
    assert step.change == pytest.approx(0.03, abs=0.004)


def test_two_steps_are_both_found() -> None:
    series = noise(60)
    series[20:] += 0.03
    series[40:] -= 0.05
    assert [step.index for step in steps(series.tolist())] == [20, 40]
    assert [step.change > 0 for step in steps(series.tolist())] == [True, False]


def test_noise_hardly_ever_makes_a_step() -> None:
    found = sum(bool(steps(noise(30, seed).tolist())) for seed in range(200))
    assert found <= 8  # 1 % of 200 is 2


def test_neither_an_odd_value_nor_equal_values_make_a_step() -> None:
    series = noise(30)
    series[12] += 1.0
    assert steps(series.tolist()) == ()
    assert steps([0.0] * 30) == ()
    assert steps([]) == ()
    assert steps([0.0] * (2 * FEWEST - 1)) == ()


def test_the_shortest_series_with_a_step() -> None:
    low, high = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5], [5.0, 5.1, 5.2, 5.3, 5.4, 5.5]
    assert steps(low + high) == (Step(6, pytest.approx(5.0)),)


def test_history_tells_steps_of_the_latest_series_alone() -> None:
    levels = [*noise(10), *(0.05 + noise(10, 1))]
    series = [entry(float(np.expm1(x)), candidate=f"c{i}") for i, x in enumerate(levels)]
    others = [entry(0.5, fingerprint_sha256="f")] * 15
    (note,) = step_notes([*others, *series])
    assert note.startswith("history: +5.")
    assert note.endswith("since 2026-01-02 (c10, check 11 of 20)")
    assert step_notes([*series, *others]) == ()
    assert step_notes([]) == ()


def test_without_a_baseline_the_latency_is_the_series() -> None:
    past = [entry(None, ms) for ms in [*[2.0, 2.01, 1.99] * 2, *[2.5, 2.51, 2.49] * 2]]
    (note,) = step_notes(past)
    assert note.startswith("history: +25.")
