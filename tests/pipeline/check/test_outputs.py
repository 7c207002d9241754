"""What CI reads: JUnit XML, Markdown, badge."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipeline.check.outputs import (
    COLOURS,
    append_markdown,
    badge,
    draw,
    junit,
    markdown,
    write_badge,
)
from pipeline.check.result import CheckResult, Gate, Subject, worst

from .conftest import LEVEL, OPEN, SLOWER, result_of


def test_the_worst_gate_is_the_verdict() -> None:
    assert result_of().verdict == "pass"
    assert result_of(LEVEL).verdict == "pass"
    assert result_of(LEVEL, OPEN).verdict == "inconclusive"
    assert result_of(OPEN, SLOWER).verdict == "regression"
    assert worst(["pass", "regression", "inconclusive"]) == "regression"


def test_acceptance_takes_a_slowdown_and_nothing_else() -> None:
    taken = result_of(SLOWER, accepted="new head")
    assert (taken.found, taken.verdict, taken.words) == ("regression", "pass", "pass (accepted)")
    open_still = result_of(SLOWER, OPEN, accepted="new head")
    assert open_still.verdict == open_still.words == "inconclusive"
    worse = Gate("accuracy", "regression", "x", "y", 0.1, None)
    failed = result_of(SLOWER, worse, accepted="new head")
    assert failed.verdict == failed.words == "regression"
    assert "Latency check: regression" in markdown(failed)


def cases_of(result: CheckResult) -> tuple[ElementTree.Element, dict[str, list[str]]]:
    suite = ElementTree.fromstring(junit(result)).find("testsuite")
    assert suite is not None
    cases = {
        case.attrib["name"]: [part.tag for part in case if part.tag != "system-out"]
        for case in suite
    }
    return suite, cases


def test_junit_has_a_case_for_each_gate() -> None:
    parity = Gate("parity", "pass", "1e-6", "at most 1e-3", 1e-6, None)
    suite, cases = cases_of(result_of(SLOWER, OPEN, parity))
    assert cases == {"slowdown": ["failure"], "budget": ["skipped"], "parity": []}
    counts = {name: suite.attrib[name] for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "3", "failures": "1", "errors": "0", "skipped": "1"}
    skipped = suite.find("testcase/skipped")
    assert skipped is not None
    assert skipped.attrib["message"].endswith("noise: too wide")


def test_junit_passes_an_accepted_slowdown() -> None:
    suite, cases = cases_of(result_of(SLOWER, accepted="new head"))
    assert cases == {"slowdown": []}
    assert suite.attrib["failures"] == "0"
    assert "accepted: new head" in (suite.findtext("testcase/system-out") or "")


def test_names_that_are_markup_stay_text() -> None:
    odd = '<script>|\x1b[31m& "x".onnx'
    result = result_of(LEVEL, candidate=Subject(odd, "0" * 64, result_of().candidate.latency))
    suite, _ = cases_of(result)
    assert "<script>|?[31m&" in suite[0].attrib["classname"]
    text = markdown(result)
    assert "<script" not in text.replace("\\<", "")
    assert "\\|" in text


def test_markdown_is_a_table_of_the_gates(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    append_markdown(path, result_of(LEVEL, OPEN, doubts=("only 3 ran",), notes=("a note",)))
    lines = path.read_text().splitlines()
    assert lines[:2] == ["before", "## Latency check: inconclusive"]
    assert "| slowdown | +0.10 % | at most +2.50 % | pass |" in lines
    assert "| budget | 4.0 ms | at most 4 ms | inconclusive |" in lines
    assert "- doubt: only 3 ran" in lines
    assert "- note: a note" in lines


@pytest.mark.parametrize(
    ("gate", "colour", "shields"),
    [(LEVEL, "pass", "brightgreen"), (SLOWER, "regression", "red")],
)
def test_badges(gate: Gate, colour: str, shields: str) -> None:
    result = result_of(gate)
    svg = badge(result, endpoint=False).decode()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert COLOURS[colour] in svg
    document = json.loads(badge(result, endpoint=True))
    assert document["schemaVersion"] == 1
    assert document["color"] == shields
    assert document["message"].startswith(colour)


def test_the_ending_says_which_badge(tmp_path: Path) -> None:
    write_badge(tmp_path / "b.json", result_of(LEVEL))
    write_badge(tmp_path / "b.svg", result_of(LEVEL))
    assert json.loads((tmp_path / "b.json").read_text())["label"] == "latency"
    assert (tmp_path / "b.svg").read_text().startswith("<svg")


def test_the_table_is_drawn_with_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    draw(result_of(SLOWER, OPEN))
    printed = capsys.readouterr().out
    assert "slowdown" in printed
    assert "budget: inconclusive (noise): too wide" in printed
    assert printed.rstrip().endswith("verdict: regression")


def test_no_name_is_markup(capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(LEVEL)
    draw(replace(result, candidate=replace(result.candidate, name="net[v2].onnx")))
    assert "net[v2].onnx" in capsys.readouterr().out
