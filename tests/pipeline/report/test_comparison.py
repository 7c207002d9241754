"""Two certificates side by side: every claim, what is missing, and what is no certificate."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import DeployError
from pipeline.report import render_comparison
from pipeline.report.comparison import (
    accuracy,
    changes,
    claims,
    comparison_page,
    headline,
    latencies,
    same_processes,
)
from pipeline.report.content import Page

from .examples import recertified


def rows(page: Page, table: str) -> list[tuple[str, ...]]:
    return [r for s in page.sections for t in s.tables if t.id == table for r in t.rows]


def test_every_claim_stands_beside_the_one_before() -> None:
    shown = {row[0]: row[1:] for row in claims(*recertified()).rows}
    assert shown == {
        "median latency ms, 95 % interval": (
            "0.8871 (0.8832 to 0.8925)",
            "0.9312 (0.9275 to 0.9361)",
            "1.050x",
        ),
        "p90 latency ms": ("0.9312", "0.9312", "1.000x"),
        "p99 latency ms": ("1.204", "–", "–"),
        "timed calls": ("3,960", "3,960", "–"),
        "budget ms": ("0.9024", "0.9024", "–"),
        "top-1 %, 95 % interval": (
            "98.06 (96.04 to 99.06)",
            "97.78 (95.68 to 98.87)",
            "−0.28 points",
        ),
        "test images": ("360", "360", "–"),
        "largest difference to torch, of the largest logit": ("2.4e-07", "2.4e-07", "–"),
        "engine bytes": ("402,117", "402,117", "1.000x"),
        "verdict": ("met", "missed", "–"),
    }


def test_what_a_certificate_does_not_state_is_a_dash() -> None:
    least = {"verdict": "met", "fingerprint": {"target": "fake"}}
    page = comparison_page("tiny", least, least)
    assert {row[1:] for row in rows(page, "comparison")} == {
        ("–", "–", "–"),
        ("met", "met", "–"),
    }
    assert headline(least, least) == (("– ms", "median latency; – ms as certified before"),)
    assert not [figure for section in page.sections for figure in section.figures]
    assert not rows(page, "same-processes")


def test_the_head_says_that_the_verdict_changed() -> None:
    old, new = recertified()
    page = comparison_page("tiny", old, new)
    assert (page.identity.verdict, page.identity.badge) == ("budget missed, was met", "missed")
    assert comparison_page("tiny", old, old).identity.verdict == "budget met"
    assert [value for value, _ in page.headline] == ["0.9312 ms", "0.951x", "97.78 %"]


def test_both_engines_in_the_same_processes() -> None:
    table = same_processes(recertified()[1])
    assert table is not None
    assert table.rows[0][1] == "0.951x (0.946x to 0.957x)"
    assert same_processes({"previous": None}) is None


def test_what_differs_is_listed_by_its_place() -> None:
    page = comparison_page("tiny", *recertified())
    assert rows(page, "set-up") == [
        ("runtime", "onnxruntime 1.31.1", "onnxruntime 1.32.0"),
        ("threads", "2", "1"),
    ]
    found = {row[0]: row[1:] for row in rows(page, "changes")}
    assert found["latency_ms.engine.p50"] == ("0.8871", "0.9312")
    assert found["latency_ms.engine.p99"] == ("1.2044", "–")
    assert not [place for place in found if place.startswith("fingerprint")]
    assert "budget_ms" not in found
    same = comparison_page("tiny", *[recertified()[0]] * 2)
    assert not rows(same, "set-up")
    assert not rows(same, "changes")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, [("a.b", 1, 2)]),
        ({"a": [1]}, {"a": [1, 2]}, [("a", [1], [1, 2])]),
        ({"a": 1}, {"b": 1}, [("a", 1, None), ("b", None, 1)]),
        ({"a": {"b": 1}}, {"a": None}, [("a", {"b": 1}, None)]),
        ({"a": 1}, {"a": True}, [("a", 1, True)]),
    ],
)
def test_changes_name_every_value_that_differs(old: Any, new: Any, expected: Any) -> None:
    assert list(changes(old, new)) == expected


def test_a_long_value_is_cut() -> None:
    old, new = recertified()
    page = comparison_page("tiny", old, {**new, "note": "x" * 500})
    (shown,) = [row[2] for row in rows(page, "changes") if row[0] == "note"]
    assert shown == "x" * 160 + "…"


def test_figures_have_the_intervals_and_the_budget() -> None:
    figure = latencies(*recertified())
    assert figure is not None
    dots, budget = figure.traces
    assert (dots["x"], dots["y"]) == ([0.8871, 0.9312], [1.0, 0.0])
    assert dots["error_x"]["array"] == pytest.approx([0.0054, 0.0049])
    assert dots["error_x"]["arrayminus"] == pytest.approx([0.0039, 0.0037])
    assert set(budget["x"]) == {0.9024}
    shares = accuracy(*recertified())
    assert shares is not None
    assert shares.traces[0]["x"] == pytest.approx([98.06, 97.78])


def test_a_figure_shows_the_one_that_was_measured() -> None:
    old, new = recertified()
    new["accuracy"]["engine"] = {"top1": None, "n": 0, "ci95": None}
    new["budget_ms"] = None
    figure = accuracy(old, new)
    assert figure is not None
    assert figure.traces[0]["y"] == [1.0]
    level = latencies(old, new)
    assert level is not None
    assert len(level.traces) == 1
    assert "97.78 %" not in [value for value, _ in headline(old, new)]


@pytest.mark.parametrize(
    "spoiled",
    [
        {"verdict": "met"},
        {"verdict": "met", "fingerprint": {}, "latency_ms": 3},
        {"verdict": "met", "fingerprint": {}, "latency_ms": {"engine": {"p50": "fast"}}},
        {"verdict": "met", "fingerprint": {}, "previous": {"median": 1.0}},
        {"fingerprint": {}},
    ],
)
def test_what_is_no_certificate_is_an_error(spoiled: dict[str, Any]) -> None:
    with pytest.raises(DeployError, match="a result in a certificate is damaged"):
        render_comparison("tiny", recertified()[0], spoiled)
