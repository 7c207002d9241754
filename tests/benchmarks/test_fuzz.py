"""A few hundred damaged inputs, and a judge that notices what it is there for."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import fuzz
from benchmarks.fuzz import Watch, run_trials, summary
from benchmarks.fuzz_subjects import SUBJECTS, Subject
from targets.errors import DeployError

WATCH = Watch()


@pytest.mark.parametrize("name", sorted(set(SUBJECTS) - {"ONNX, ort-cpu"}))
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
def test_damage_is_refused_in_one_line_or_changes_nothing(name: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    trials = list(run_trials(name, range(100_000, 100_040), place, WATCH))
    found = summary(trials)
    assert found["failures"] == []
    assert found["outcomes"]["refused"] >= 5
    assert sum(found["outcomes"].values()) == 40


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("forged bundle", (2609, 9816, 16152, 19230)), ("ONNX, fake", (1977, 2976, 3622, 4636))],
)
def test_what_once_crashed_is_refused(name: str, numbers: tuple[int, ...], tmp_path: Path) -> None:
    for number in numbers:
        place = tmp_path / str(number) / "place"
        place.mkdir(parents=True)
        (trial,) = run_trials(name, range(number, number + 1), place, WATCH)
        assert trial.outcome == "refused", trial


class Reads(Subject):
    """A subject whose reader does as the test says; its files are always damaged."""

    def __init__(self, reader: Callable[[Path], object]) -> None:
        self.reader = reader

    def make(self, folder: Path) -> None:
        (folder / "x").write_bytes(b"sound")

    def damage(self, rng: random.Random, folder: Path) -> str:
        (folder / "x").write_bytes(b"damaged")
        return "replaced"

    def use(self, folder: Path) -> object:
        content = (folder / "x").read_bytes()
        return content if content == b"sound" else self.reader(folder)


def refuse(message: str, fix: str = "mend it") -> None:
    raise DeployError(message, fix=fix)


def forever(_: Path) -> None:
    while True:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("reader", "outcome"),
    [
        (lambda folder: refuse("it is damaged"), "refused"),
        (lambda folder: refuse("it is damaged", fix=""), "unclear"),
        (lambda folder: b"sound", "same"),
        (lambda folder: b"other", "accepted"),
        (lambda folder: 1 / 0, "crashed"),
        (lambda folder: pickle.loads(pickle.dumps(os.getpid)), "escaped"),
        (lambda folder: subprocess.run(["true"], check=True), "escaped"),
        (lambda folder: (folder.parent.parent / "outside").write_bytes(b""), "escaped"),
        (lambda folder: (folder / "y").write_bytes(b""), "accepted"),
        (forever, "hung"),
    ],
)
def test_the_judge_tells(
    reader: Callable[[Path], object],
    outcome: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SUBJECTS, "reads", lambda: Reads(reader))
    monkeypatch.setattr(fuzz, "LIMIT_S", 0.3)
    place = tmp_path / "place"
    place.mkdir()
    (trial,) = run_trials("reads", range(1), place, WATCH)
    assert trial.outcome == outcome, trial


def test_a_reader_that_ends_the_process_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUBJECTS, "reads", lambda: Reads(lambda folder: os._exit(7)))
    trials = list(fuzz.in_children("reads", 3, WATCH))
    assert [trial.outcome for trial in trials] == ["crashed"] * 3
    assert trials[0].detail == "the process ended with 7"


def test_the_same_trial_is_the_same_damage(tmp_path: Path) -> None:
    found = []
    for again in ("one", "two"):
        place = tmp_path / again / "place"
        place.mkdir(parents=True)
        trials = run_trials("plan.json", range(5, 25), place, WATCH)
        found.append([(trial.damage, trial.outcome) for trial in trials])
    assert found[0] == found[1]
