"""What each look of a check saw, and what its page is made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.check.boundary import Boundary
from pipeline.check.course import Course
from pipeline.check.history import Entry
from pipeline.check.latency import Limits, Trial, gates_of
from pipeline.check.page import SHOWN, record_of
from pipeline.cli import main
from pipeline.report.rendering import record_in

from .conftest import LEVEL, SLOWER, blocks_of, noisy, result_of

BOUNDARY = Boundary.of(40)


def test_every_look_sees_the_processes_so_far() -> None:
    values = noisy(1.0, 0.01, n=15)
    course = Course.of(values, BOUNDARY, 1.025)
    assert course.limit == 1.025
    assert course.values == tuple(values)
    assert course.medians[:3] == (values[0], sum(values[:2]) / 2, sorted(values[:3])[1])
    fewest = BOUNDARY.fewest
    assert all(interval is None for interval in course.intervals[: fewest - 1])
    assert course.intervals[fewest - 1] == (min(values[:fewest]), max(values[:fewest]))
    assert course.intervals[-1] == BOUNDARY.interval(values)
    assert len(course.intervals) == len(course.medians) == 15


def test_the_last_look_is_the_gate() -> None:
    trial = Trial(blocks_of(noisy(1.01, 0.005, n=20)), Limits(0.025, 2.1), BOUNDARY)
    for gate, limit in zip(gates_of(trial, "verdict"), (0.025, 2.1), strict=True):
        assert gate.course is not None
        assert gate.course.limit == limit
        assert gate.course.medians[-1] == pytest.approx(gate.value)
        assert gate.course.intervals[-1] == gate.interval


def entries_of(count: int, **changes: object) -> list[Entry]:
    return [replace(Entry.of(result_of(LEVEL)), **changes) for _ in range(count)]  # type: ignore[arg-type]


def test_the_history_holds_this_series_and_its_levels() -> None:
    result = result_of(SLOWER)
    past = entries_of(10, slowdown=0.0) + entries_of(3, percentile="p99")
    record = record_of(result, [*past, *entries_of(10, slowdown=0.1), Entry.of(result)])
    history = record["history"]
    assert history["is_share"]
    assert len(history["checks"]) == 21
    assert [(level["first"], level["end"]) for level in history["levels"]] == [(0, 10), (10, 21)]
    assert [level["value"] for level in history["levels"]] == pytest.approx([0.0, 0.1])
    assert history["checks"][-1]["value"] == pytest.approx(0.06)


def test_without_a_baseline_the_history_is_in_ms() -> None:
    alone = result_of(baseline=None)
    history = record_of(alone, [Entry.of(alone)])["history"]
    assert not history["is_share"]
    assert history["levels"] == [{"first": 0, "end": 1, "value": pytest.approx(2.0)}]


def test_a_long_history_is_cut_and_none_is_none() -> None:
    result = result_of(LEVEL)
    record = record_of(result, entries_of(SHOWN + 5, slowdown=0.0))
    assert len(record["history"]["checks"]) == SHOWN
    assert record_of(result, [])["history"] is None


def test_the_command_writes_a_page_that_keeps_its_record(
    networks: dict[str, Path],
    measured: Callable[[Iterable[float]], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measured(noisy(1.06, 0.003))
    page, history = tmp_path / "new" / "check.html", tmp_path / "history.jsonl"
    flags = ("--against", networks["base"], "--target", "fake", "--json")
    files = ("--html", page, "--history", history)
    for count in (1, 2):
        asked = [str(part) for part in ("check", networks["same"], *flags, *files)]
        result = CliRunner().invoke(main, asked)
        assert result.exit_code == 1, result.output
        record = record_in(page)
        assert record is not None
        assert record["result"] == json.loads(result.stdout)
        assert len(record["history"]["checks"]) == count
    slowdown = record["result"]["gates"][0]
    assert slowdown["course"]["intervals"][-1] == slowdown["interval"]


def test_calibration_writes_no_page(networks: dict[str, Path], tmp_path: Path) -> None:
    asked = ["check", str(networks["base"]), "--calibrate", "--html", str(tmp_path / "x.html")]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2
    assert "--calibrate takes one engine" in result.stderr
