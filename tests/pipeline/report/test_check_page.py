"""The page of a check says what its result says, and shows how that came about."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.check.boundary import Boundary
from pipeline.check.course import Course
from pipeline.check.history import Entry
from pipeline.check.page import record_of
from pipeline.check.result import CheckResult, Gate
from pipeline.errors import DeployError
from pipeline.report import render_check
from pipeline.report.check_page import check_page, gates, headline, latency, steps
from pipeline.report.check_plots import COLORS
from pipeline.report.content import Page
from pipeline.report.plots import Figure
from pipeline.report.rendering import record_in, render_template

from .examples import BUDGET_MS, MARGIN, check_history, check_record, check_result

BOUNDARY = Boundary.of(40)


def page_of(result: CheckResult, entries: list[Entry] | None = None) -> Page:
    return check_page(record_of(result, entries or []))


def figures(page: Page) -> dict[str, Figure]:
    return {figure.id: figure for section in page.sections for figure in section.figures}


def named(figure: Figure, name: str) -> dict[str, Any]:
    (found,) = [one for one in figure.traces if one["name"] == name]
    return found


# tables -----------------------------------------------------------------------------------


def test_the_gates_are_those_of_the_result() -> None:
    result = check_result()
    shown = gates(result.to_json())
    assert shown.rows == tuple((g.name, g.found, g.limit, g.verdict) for g in result.gates)
    assert [row[0] for row in shown.rows] == ["slowdown", "budget", "accuracy"]
    assert shown.caption.startswith("Intervals at 99%")


def test_latencies_have_their_intervals_and_calls() -> None:
    result = check_result().to_json()
    result["candidate"]["latency"] |= {"ms": 2.118, "interval": [2.104, 2.132], "calls": 12345}
    result["baseline"]["latency"]["interval"] = None
    assert latency(result).rows == (
        ("candidate", "resnet20-new", "2.118 (2.104 to 2.132)", "12,345", "a" * 16),
        ("baseline", "resnet20-main", "2.000", "75", "b" * 16),
    )


def test_the_head_has_what_one_looks_for() -> None:
    result = check_result()
    slowdown = result.gate("slowdown")
    assert slowdown is not None
    assert slowdown.value is not None
    shown = headline(result.to_json())
    assert shown[0][0] == f"{100 * slowdown.value:+.2f} %"
    assert shown[0][1] == "slowdown; at most +2.50 %, regression"
    assert shown[2][0] == "−0.28 points"  # lost
    assert shown[-1] == ("15", "fresh processes in 22 s")


def test_a_check_against_a_budget_only() -> None:
    whole = check_result()
    budget = whole.gate("budget")
    assert budget is not None
    page = page_of(replace(whole, baseline=None, gates=(budget,)))
    assert page.identity.name == "resnet20-new"
    assert set(figures(page)) == {"looks-budget", "processes-budget", "blocks"}
    assert [row[0] for row in latency(page.record["result"]).rows] == ["candidate"]  # type: ignore[index]


SLOWER = Gate("slowdown", "regression", "+6.00 %", "at most +2.50 %", 0.06, (0.05, 0.07))
WORSE = Gate("accuracy", "regression", "2.00 points lost", "at most 1.00", 0.02, None)


@pytest.mark.parametrize(
    ("changes", "words", "badge"),
    [
        ({}, "regression", "missed"),
        ({"accepted": "new head"}, "pass (accepted)", "met"),
        ({"accepted": "new head", "gates": (SLOWER, WORSE)}, "regression", "missed"),
        ({"gates": ()}, "pass", "met"),
    ],
)
def test_the_badge_is_the_verdict(changes: dict[str, Any], words: str, badge: str) -> None:
    page = page_of(check_result(**changes))
    assert (page.identity.verdict, page.identity.badge) == (words, badge)


def test_what_was_in_the_way_is_said() -> None:
    gate = Gate("budget", "inconclusive", "4", "4", 4.0, (3.9, 4.1), "noise", "9 % wide")
    page = page_of(check_result(gates=(gate,), accepted="why not"))
    assert page.sections[0].lines == ("budget: noise: 9 % wide", "accepted: why not")
    assert page.identity.badge == "inconclusive"
    assert "looks-budget" not in figures(page)  # it was not measured process by process


def test_doubts_and_notes_are_told() -> None:
    result = check_result()
    lines = {section.title: section.lines for section in page_of(result).sections}
    assert lines["Doubts"] == result.doubts
    assert lines["Notes"] == result.notes
    clean = {s.title: s.lines for s in page_of(replace(result, doubts=(), notes=())).sections}
    assert clean["Doubts"] == ("none recorded",)
    assert "Notes" not in clean


# figures ----------------------------------------------------------------------------------


def test_the_looks_are_the_intervals_of_the_boundary() -> None:
    result = check_result()
    slowdown = result.gate("slowdown")
    assert slowdown is not None
    assert slowdown.course is not None
    figure = figures(page_of(result))["looks-slowdown"]
    values = slowdown.course.values
    expected = [(n, BOUNDARY.interval(values[:n])) for n in range(1, 16)]
    known = [(n, *found) for n, found in expected if found is not None]
    assert known
    band = named(figure, "interval")
    half = len(known)
    assert band["x"] == [n for n, _, _ in known] + [n for n, _, _ in known][::-1]
    assert band["y"][:half] == pytest.approx([100 * high for _, _, high in known], rel=1e-5)
    assert band["y"][half:][::-1] == pytest.approx([100 * low for _, low, _ in known], rel=1e-5)
    assert (band["y"][half], band["y"][half - 1]) == pytest.approx(
        [100 * end for end in slowdown.interval or ()], rel=1e-5
    )
    median = named(figure, "median so far")
    assert median["y"] == pytest.approx(
        [100 * np.median(values[:n]) for n in range(1, 16)], rel=1e-5
    )
    assert median["y"][-1] == pytest.approx(100 * (slowdown.value or 0), rel=1e-5)


def test_a_single_look_is_seen_too() -> None:
    result = check_result()
    slowdown = result.gate("slowdown")
    assert slowdown is not None
    assert slowdown.course is not None
    fewest = BOUNDARY.fewest
    course = Course.of(slowdown.course.values[:fewest], BOUNDARY, MARGIN)
    figure = figures(page_of(replace(result, gates=(replace(slowdown, course=course),))))[
        "looks-slowdown"
    ]
    bars = named(figure, "median so far")["error_y"]
    low, high = course.intervals[-1] or (0.0, 0.0)
    median = course.medians[-1]
    assert bars["array"] == pytest.approx([0] * (fewest - 1) + [100 * (high - median)])
    assert bars["arrayminus"] == pytest.approx([0] * (fewest - 1) + [100 * (median - low)])
    said = named(figure, "median so far")["text"]
    assert said == [""] * (fewest - 1) + [f" ({100 * low:+.2f} to {100 * high:+.2f})"]


def test_whole_numbers_are_not_repeated_on_the_axis() -> None:
    result = check_result()
    one = figures(page_of(result, [Entry.of(result)]))["history"].layout["xaxis"]
    assert (one["dtick"], one["range"]) == (1, [0.5, 1.5])
    assert "dtick" not in figures(page_of(result))["blocks"].layout["xaxis"]


def test_a_page_made_anew_from_its_record_is_the_same(tmp_path: Path) -> None:
    record = check_record()
    path = tmp_path / "check.html"
    path.write_text(render_check(record), encoding="utf-8")
    kept = record_in(path)
    assert kept is not None
    assert render_check(kept) == path.read_text(encoding="utf-8")


def test_limits_are_drawn_in_the_unit_of_the_gate() -> None:
    found = figures(page_of(check_result()))
    slowdown = named(found["looks-slowdown"], "limit +2.50 %")
    assert slowdown["y"] == pytest.approx([100 * MARGIN] * 2)
    budget = named(found["looks-budget"], "limit 2.200 ms")
    assert budget["y"] == [BUDGET_MS] * 2
    assert found["looks-budget"].layout["yaxis"]["title"]["text"] == "latency ms"


def test_every_process_is_a_point() -> None:
    result = check_result()
    found = figures(page_of(result))
    slowdown = result.gate("slowdown")
    assert slowdown is not None
    assert slowdown.course is not None
    shown = named(found["processes-slowdown"], "one process")
    assert shown["y"] == pytest.approx([100 * v for v in slowdown.course.values], rel=1e-5)
    assert named(found["blocks"], "candidate")["y"] == pytest.approx(
        result.candidate.latency.block_ms, rel=1e-5
    )
    assert len(named(found["blocks"], "baseline")["y"]) == 15


def test_the_history_has_every_check_and_its_steps() -> None:
    result = check_result()
    entries = check_history(result)
    page = page_of(result, entries)
    figure = figures(page)["history"]
    shown = {
        x: y
        for name in COLORS
        for one in figure.traces
        if one["name"] == name
        for x, y in zip(one["x"], one["y"], strict=True)
    }
    assert [shown[n] for n in range(1, 26)] == pytest.approx(
        [100 * (entry.slowdown or 0) for entry in entries], rel=1e-5
    )
    assert named(figure, "inconclusive")["x"] == [6]
    level = named(figure, "level")
    assert level["x"] == [0.5, 12.5, None, 12.5, 25.5, None]
    history = page.record["history"] if page.record else None
    assert history is not None
    table = steps(history)
    assert table is not None
    ((since, _, after, ratio),) = table.rows
    assert since == "2026-02-13 commit-12"
    assert after.startswith(("+1.", "+2."))
    assert ratio.startswith("1.0")


def test_names_in_the_history_are_no_tags() -> None:
    result = check_result()
    texts = [
        text
        for one in figures(page_of(result, check_history(result)))["history"].traces
        for text in one.get("text", ())
    ]
    assert any("accepted: a &lt;b&gt;wider&lt;/b&gt; head" in text for text in texts)


def test_other_series_are_left_out_of_the_history() -> None:
    result = check_result()
    entries = check_history(result)
    foreign = [replace(entry, baseline_sha256="c" * 64) for entry in entries[:10]]
    record = record_of(result, [*foreign, *entries])
    assert len(record["history"]["checks"]) == len(entries)


def test_a_history_in_ms_has_steps_in_ms() -> None:
    history = {
        "is_share": False,
        "checks": [{"at": f"2026-01-0{n}", "candidate": str(n)} for n in (1, 2)],
        "levels": [{"first": 0, "end": 1, "value": 2.0}, {"first": 1, "end": 2, "value": 3.0}],
    }
    table = steps(history)
    assert table is not None
    assert table.rows == (("2026-01-02 2", "2.000 ms", "3.000 ms", "1.500x"),)
    assert steps(history | {"levels": history["levels"][:1]}) is None


def test_without_a_history_there_is_no_such_section() -> None:
    page = page_of(check_result())
    assert "History" not in [section.title for section in page.sections]


# what is no result ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.pop("result"),
        lambda record: record["result"].pop("gates"),
        lambda record: record["result"].update(candidate=3),
        lambda record: record["result"]["gates"][0].update(course={"values": []}),
        lambda record: record["result"].update(seconds="long"),
        lambda record: record["history"].update(checks=[1, 2]),
        lambda record: record["history"]["levels"].append({"first": 10**6, "end": 1, "value": 0}),
    ],
)
def test_a_record_of_another_form_is_an_error(spoil: Any) -> None:
    record = copy.deepcopy(check_record())
    spoil(record)
    with pytest.raises(DeployError, match="a result in the check is damaged") as caught:
        render_check(record)
    assert caught.value.fix


def test_a_hostile_record_cannot_end_its_script() -> None:
    record = check_record()
    record["result"]["notes"] = ["</script><script>alert(1)</script>"]
    content = {"page": check_page(record), "figures": [], "script": "", "plotly": ""}
    shown = render_template("report.html", content)
    assert "<script>alert" not in shown
