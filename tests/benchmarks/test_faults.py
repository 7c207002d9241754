"""The judge of the fault study: what it must see, and a page that follows from its result."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import faults
from benchmarks.faults import FAULTS, Log, Study, surprises
from benchmarks.faults_kills import CHECKS, Kill, killed_run, unlike_story
from benchmarks.faults_page import GROUPS, PAGE, render
from benchmarks.faults_place import Fault, Place
from benchmarks.faults_project import (
    Project,
    Said,
    SurpriseError,
    UntriedError,
    kill,
    make_project,
)
from benchmarks.faults_run import (
    differences,
    faults_of_final_names,
    leftovers,
    measured,
    stage_at_the_end,
)
from pipeline.files import digests
from pipeline.run import RECORD


def stage(folder: Path, name: str, **files: str) -> Path:
    """A finished stage with these files."""
    made = folder / name
    made.mkdir(parents=True)
    for file, text in files.items():
        (made / file).write_text(text)
    (made / RECORD).write_text(json.dumps({"wrote": digests(made, without=RECORD)}))
    return made


# a run folder -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (lambda made: None, False),
        (lambda made: (made / "plan").write_text("cut sh"), True),
        (lambda made: (made / "plan").unlink(), True),
        (lambda made: (made / "extra").touch(), True),
        (lambda made: (made / RECORD).unlink(), True),
    ],
)
def test_half_a_stage_is_seen(tmp_path: Path, damage: Callable[[Path], object], seen: bool) -> None:
    damage(stage(tmp_path, "prune", plan="cut short"))
    assert bool(faults_of_final_names(tmp_path)) is seen


def test_half_a_bundle_and_half_a_line_are_seen(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "events.jsonl").write_text('{"event": "stage st')
    found = faults_of_final_names(tmp_path)
    assert [one.partition(":")[0] for one in found] == [
        "bundle",
        "events.jsonl ends within a line",
    ]


def test_what_is_temporary_is_seen(tmp_path: Path) -> None:
    made = stage(tmp_path, "prune", plan="x")
    (tmp_path / ".lock").touch()
    assert leftovers(tmp_path) == []
    (made / ".plan.123").touch()
    (tmp_path / "verify.partial").mkdir()
    (made / "latency.sqlite-wal").touch()
    assert leftovers(tmp_path) == ["prune/.plan.123", "prune/latency.sqlite-wal", "verify.partial"]


def write_rows(database: Path, rows: list[tuple[str, str, str, bytes, bytes]]) -> None:
    database.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS measurement "
            "(skeleton, widths, measured_at, candidate, anchor)"
        )
        connection.executemany("INSERT INTO measurement VALUES (?, ?, ?, ?, ?)", rows)
    connection.close()


def test_measurements_of_finished_and_killed_stages_are_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "calibrate" / "latency.sqlite", [("s", "1", "t", b"a", b"b")])
    write_rows(tmp_path / "prune.partial" / "latency.sqlite", [("s", "2", "t", b"c", b"d")])
    assert measured(tmp_path) == {("s", "1"): ("t", b"a", b"b"), ("s", "2"): ("t", b"c", b"d")}


def bundle(folder: Path, **changed: str) -> Project:
    files = {"plan.json": "{}", "weights.safetensors": "w", "report.html": "1 s"}
    certificate = {"build": 1.0, "accuracy": 0.9, "latency_ms": 1.0}
    root = folder / "run" / "bundle"
    root.mkdir(parents=True)
    for name, text in (files | changed).items():
        (root / name).write_text(text)
    if "certificate.json" not in changed:
        (root / "certificate.json").write_text(json.dumps(certificate))
    return Project(folder)


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        ({}, []),
        ({"report.html": "2 s"}, []),
        ({"plan.json": "{1}"}, ["plan.json"]),
        ({"other": "x"}, ["only in one: other"]),
        ({"certificate.json": '{"build": 2.0, "accuracy": 0.9, "latency_ms": 1.0}'}, []),
        (
            {"certificate.json": '{"build": 1.0, "accuracy": 0.8, "latency_ms": 1.0}'},
            ["certificate: accuracy"],
        ),
        (
            {"certificate.json": '{"build": 1.0, "accuracy": 0.9, "latency_ms": 2.0}'},
            ["certificate: latency_ms"],
        ),
    ],
)
def test_bundles_are_compared_but_for_the_clock(
    tmp_path: Path, changed: dict[str, str], seen: list[str]
) -> None:
    one, two = bundle(tmp_path / "one"), bundle(tmp_path / "two", **changed)
    assert differences(one, two, "fake") == seen
    of_a_clock = [name for name in seen if name != "certificate: latency_ms"]
    assert differences(one, two, "ort-cpu") == of_a_clock


def told(*events: str) -> list[dict[str, Any]]:
    """ "start:prune", "again:prune" (resumed) or "end:prune"."""
    kinds = {"start": "stage started", "again": "stage started", "end": "stage finished"}
    split = [event.partition(":") for event in events]
    return [
        {"event": kinds[kind], "stage": name, "resumed": kind == "again"} for kind, _, name in split
    ]


def test_the_stage_at_work_is_known() -> None:
    assert stage_at_the_end([]) == "start"
    assert stage_at_the_end(told("start:prune")) == "prune"
    assert stage_at_the_end(told("start:prune", "end:prune")) == "between stages"


@pytest.mark.parametrize(
    ("events", "seen"),
    [
        (("start:prune", "again:prune", "end:prune"), False),
        (("start:prune", "start:prune", "end:prune"), True),
        (("start:prune", "again:prune"), True),
        (("start:prune", "end:prune", "again:prune", "end:prune"), True),
    ],
)
def test_events_that_tell_it_otherwise_are_seen(events: tuple[str, ...], seen: bool) -> None:
    assert bool(unlike_story(told(*events))) is seen


# commands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "stderr", "fine"),
    [
        (1, "error: no room\n  fix: free the disk\n", True),
        (0, "", False),
        (2, "error: no room\n  fix: free the disk\n", False),
        (1, "Traceback (most recent call last):\nerror: no room\n  fix: free it\n", False),
        (1, "error: no room\n", False),
        (1, "error: another thing\n  fix: free the disk\n", False),
        (None, "", False),
    ],
)
def test_only_one_line_and_its_fix_will_do(code: int | None, stderr: str, fine: bool) -> None:
    said = Said(code, "", stderr, 0.1)
    if fine:
        assert said.require_told("no room") == "no room"
    else:
        with pytest.raises(SurpriseError):
            said.require_told("no room")


def test_a_command_that_hangs_is_ended_with_its_group(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert Project(tmp_path).finish(process, 0.0, timeout_s=0.1).code is None
    assert process.returncode == -9


def test_a_run_that_ends_before_its_time_is_no_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = [sys.executable, "-c", "pass"]
    monkeypatch.setattr(
        Project,
        "start",
        lambda *_, **__: subprocess.Popen(
            quick, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ),
    )
    like = make_project(tmp_path / "like")
    assert killed_run("fake", 1, 0, tmp_path / "one", like=like, seconds=100.0) is None


# the study --------------------------------------------------------------------------------------


def study(tmp_path: Path) -> Study:
    return Study(tmp_path, Log(tmp_path / "trials.jsonl"), 0, {}, {})


def fails(error: Exception) -> Callable[[Place, int], str]:
    def try_it(place: Place, number: int) -> str:
        raise error

    return try_it


@pytest.mark.parametrize(
    ("try_it", "outcome", "kept"),
    [
        (lambda place, number: "seen", "expected", False),
        (fails(SurpriseError("other")), "surprise", True),
        (fails(KeyError("history")), "surprise", True),
        (fails(UntriedError("no right")), "untried", False),
    ],
)
def test_outcomes_are_noted_and_not_tried_again(
    tmp_path: Path, try_it: Callable[[Place, int], str], outcome: str, kept: bool
) -> None:
    fault = Fault("a fault", "disk", "What", "that", 2, try_it)
    study(tmp_path).try_fault(fault)
    study(tmp_path).try_fault(fault)
    found = study(tmp_path).log.all("trial")
    assert [(one["number"], one["outcome"]) for one in found] == [(0, outcome), (1, outcome)]
    assert (tmp_path / "a-fault-0").exists() is kept


def kills(count: int, **faults_found: str) -> dict[str, Any]:
    one = Kill(0, 1.5, "prune", 21, 0, 0, 9.0, faults_found).to_json()
    return {"reference_s": 10.0, "ended_before": 2, "runs": [one] * count}


def result(outcome: str = "expected", **faults_found: str) -> dict[str, Any]:
    trial = {"number": 0, "outcome": outcome, "detail": "", "seconds": 1.0}
    return {
        "environment": {"machine": {"device": "a processor"}},
        "seed": 0,
        "commits": {"0123456789": 6, "abcdef0123": 1},
        "kills": {"fake": kills(3, **faults_found), "ort-cpu": kills(2)},
        "faults": [
            {
                **{"key": "k", "group": "disk", "what": "The disk is full.", "expected": "a line"},
                **{"trials": 1, "found": [trial, trial]},
            }
        ],
    }


def fuzzed(failures: int = 0) -> dict[str, Any]:
    outcomes = {"refused": 1990 - failures, "same": 10, "hung": failures}
    return {
        "environment": {"commit": "fedcba9876"},
        "subjects": {
            "bundle": {"trials": 2000, "outcomes": outcomes, "failure_count": failures},
            "plan.json": {"trials": 50, "outcomes": {"other": 50}, "failure_count": 0},
        },
    }


def test_the_page_counts() -> None:
    page = render(result(), fuzzed())
    assert "## Killed at a random time: 5 runs" in page
    assert "| Measurements stored when they were killed | 63 | 42 |" in page
    assert page.count("| 3 of 3 | 2 of 2 |") == len(CHECKS)
    assert "| The disk is full. | a line | 2 | 2 |" in page
    assert "(trials by commit: 6 at 0123456, 1 at abcdef0; a processor, seed 0)" in page
    assert surprises(result()) == 0
    assert "## Damaged files: 2,050" in page
    assert "fuzz.json` (commit fedcba9)" in page
    assert "| bundle | 2,000 | 1,990 | 10 | 0 | 0 |\n| plan.json | 50 | 0 | 0 | 50 | 0 |" in page


def test_the_page_tells_what_failed() -> None:
    page = render(result("surprise", same="plan.json"), fuzzed(failures=3))
    assert "| bundle | 2,000 | 1,987 | 10 | 0 | 3 |" in page
    assert page.count("| 0 of 3 | 2 of 2 |") == 1
    assert "| The disk is full. | a line | 2 | 0 |" in page
    assert surprises(result("surprise", same="plan.json")) == 5


def test_the_page_tells_what_was_not_tried() -> None:
    page = render(result("untried"), fuzzed())
    assert "| a line | 0 |" not in page
    assert "Not tried on this machine:\n\n- The disk is full." in page


def test_check_fails_on_a_page_that_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "RESULTS", tmp_path)
    monkeypatch.setattr(faults, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["faults", "--check"])
    (tmp_path / faults.RESULT).write_text(json.dumps(result()))
    (tmp_path / faults.FUZZ).write_text(json.dumps(fuzzed()))
    faults.write_page()
    assert faults.main() == 0
    edited = (tmp_path / "page.md").read_text().replace("| 3 of 3 |", "| 4 of 4 |")
    (tmp_path / "page.md").write_text(edited)
    assert faults.main() == 1


def test_the_committed_page_follows_from_the_result() -> None:
    assert PAGE.read_text(encoding="utf-8") == faults._rendered()


def test_every_fault_has_a_place_on_the_page() -> None:
    assert {fault.group for fault in FAULTS} == set(GROUPS)
    assert len({fault.key for fault in FAULTS}) == len(FAULTS)


def test_a_killed_group_leaves_nobody(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert kill(process) == ("", "")  # it would wait for the child's end of the pipe
    assert process.returncode == -9
