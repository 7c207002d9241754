"""What a person sees: bars on a terminal, plain lines now and then elsewhere, nothing if quiet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import console as console_module
from pipeline.console import PLAIN_EVERY_S, Console, draw_summary


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    # a terminal of the test run, or colours forced by CI, must not change what is tested
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(console_module, "time", clock)
    return clock


def test_plain_lines_are_throttled(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        for done in range(1, 101):
            console.progress("measure", done, 100)
            clock.now += 1.0
    lines = capsys.readouterr().err.splitlines()
    every = int(PLAIN_EVERY_S)
    expected = [f"measure: {done}/100" for done in range(1, 101, every)]
    assert lines == [*expected, "measure: 100/100"]


def test_labels_are_throttled_on_their_own(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Console() as console:
        console.progress("dense", 1, 9, "loss 2.0")
        console.progress("gates", 1, 9)
        console.progress("dense", 2, 9)
        console.progress("gates", 9, 9)
    assert capsys.readouterr().err.splitlines() == [
        "dense: 1/9 loss 2.0",
        "gates: 1/9",
        "gates: 9/9",
    ]


def test_last_step_is_always_told(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        console.progress("measure", 1, 2)
        console.progress("measure", 2, 2)
    assert capsys.readouterr().err.splitlines() == ["measure: 1/2", "measure: 2/2"]


def test_what_is_said_is_one_line_as_it_is(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "skipped a corrupt image: [red]dog/0[1].jpg " + "x" * 200
    with Console() as console:
        console.say(text)
    captured = capsys.readouterr()
    assert captured.err == f"{text}\n"
    assert captured.out == ""


def test_quiet_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Console(quiet=True) as console:
        console.say("something")
        console.progress("measure", 1, 1)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_terminal_gets_bars(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes rich see a terminal
    monkeypatch.setenv("COLUMNS", "120")
    with Console() as console:
        console.progress("measure widths", 3, 10, "so far")
        console.progress("measure widths", 10, 10, "all")
    shown = capsys.readouterr().err
    assert "measure widths" in shown
    assert "10/10" in shown
    assert "measure widths: " not in shown


def test_bars_end_with_an_error(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = Console()

    def work() -> None:
        with console:
            console.progress("measure", 1, 2)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert not console._bars.live.is_started


def test_summary_names_the_bundle_where_there_is_one(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    rows = [("top-1", "90 %", "89 %"), ("verdict", "–", "met")]
    monkeypatch.setattr("pipeline.report.summary_rows", lambda _: rows)
    certificate = {"model": "tiny", "target": "ort-cpu"}
    draw_summary(tmp_path, certificate)
    shown = capsys.readouterr().out
    assert "tiny on ort-cpu" in shown
    assert "89 %" in shown
    assert "bundle" not in shown
    (tmp_path / "bundle").mkdir()
    draw_summary(tmp_path, certificate)
    assert f"bundle: {tmp_path / 'bundle'}\n" in capsys.readouterr().out
