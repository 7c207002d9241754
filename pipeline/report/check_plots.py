"""Figures of a check: what each look saw, what each process gave, and the checks before it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.documents import Document
from pipeline.report.numbers import ABSENT, ms
from pipeline.report.plots import BAND, BLUE, GREEN, GREY, ORANGE, Figure, axis, trace, whole_axis

RED = "#d04a4a"
COLORS = {"pass": GREEN, "regression": RED, "inconclusive": GREY}


@dataclass(frozen=True)
class Unit:
    """In what a gate is measured: a slowdown in percent, a latency in ms."""

    title: str
    scale: float
    form: str
    hover: str  # how plotly writes y

    def said(self, value: float | None) -> str:
        return ABSENT if value is None else f"{value:{self.form}}"

    def __call__(self, values: Sequence[float | None]) -> list[float | None]:
        return [None if value is None else self.scale * value for value in values]


SLOWDOWN = Unit("slowdown %", 100.0, "+.2f", "%{y:+.2f} %")
LATENCY = Unit("latency ms", 1.0, ".4g", "%{y:.4g} ms")


def unit_of(gate: Document) -> Unit:
    return SLOWDOWN if gate["name"] == "slowdown" else LATENCY


def looks(gate: Document) -> Figure:
    """The interval after every process, against the limit."""
    course, unit = gate["course"], unit_of(gate)
    known = [(n, *unit(i)) for n, i in enumerate(course["intervals"], 1) if i is not None]
    counts = list(range(1, len(course["values"]) + 1))
    traces = [_band(known), _medians(course, unit), _limit(counts, course["limit"], unit)]
    label = (
        f"{gate['name']}: the interval after each fresh process. The check ends when it lies "
        "wholly below the limit, or wholly above it"
    )
    return Figure(f"looks-{gate['name']}", label, traces, _layout("processes", len(counts), unit))


def _medians(course: Document, unit: Unit) -> dict[str, Any]:
    """The median so far; bars for the intervals, since a band of one look has no width."""
    medians = [unit.scale * value for value in course["medians"]]
    ends = [i if i is None else unit(i) for i in course["intervals"]]
    line = trace("median so far", range(1, len(medians) + 1), medians, color=BLUE)
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [0 if end is None else end[1] - m for end, m in zip(ends, medians, strict=True)],
        "arrayminus": [
            0 if end is None else m - end[0] for end, m in zip(ends, medians, strict=True)
        ],
        "thickness": 1,
        "width": 3,
    }
    said = ["" if end is None else f" ({unit.said(end[0])} to {unit.said(end[1])})" for end in ends]
    return _said(line, f"{unit.hover}%{{text}}") | {"text": said, "error_y": bars}


def _band(known: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """The polygon of all (count, low, high)."""
    counts = [n for n, _, _ in known]
    edge = [high for _, _, high in known] + [low for _, low, _ in known][::-1]
    shape = trace("interval", counts + counts[::-1], edge, color=BAND, mode="lines")
    return shape | {"fill": "toself", "fillcolor": BAND, "line": {"width": 0}, "hoverinfo": "skip"}


def processes(gate: Document) -> Figure:
    """What each process gave on its own."""
    course, unit = gate["course"], unit_of(gate)
    counts = list(range(1, len(course["values"]) + 1))
    points = trace("one process", counts, unit(course["values"]), color=BLUE, mode="markers")
    traces = [_said(points, unit.hover), _limit(counts, course["limit"], unit)]
    label = f"{gate['name']}: each fresh process on its own, in the order in which they ran"
    return Figure(f"processes-{gate['name']}", label, traces, _layout("process", len(counts), unit))


def blocks(candidate: Document, baseline: Document | None) -> Figure:
    """The latency of each engine in each process, in ms."""
    sides = (("candidate", candidate, BLUE), ("baseline", baseline, GREY))
    counts = list(range(1, len(candidate["latency"]["block_ms"]) + 1))
    traces = [
        _said(trace(name, counts, side["latency"]["block_ms"], color=color), LATENCY.hover)
        for name, side, color in sides
        if side is not None
    ]
    label = "Latency of each engine in each fresh process"
    return Figure("blocks", label, traces, _layout("process", len(counts), LATENCY))


def history(found: Document) -> Figure:
    """The checks of this series, and the levels between the steps."""
    checks, unit = found["checks"], SLOWDOWN if found["is_share"] else LATENCY
    values = unit([check["value"] for check in checks])
    traces = [_levels(found["levels"], unit)]
    for verdict, color in COLORS.items():
        at = [n for n, check in enumerate(checks) if check["verdict"] == verdict]
        if at:
            points = trace(
                verdict, [n + 1 for n in at], [values[n] for n in at], color=color, mode="markers"
            )
            said = [_of_check(checks[n]) for n in at]
            traces.append(_said(points, f"%{{text}}<br>{unit.hover}") | {"text": said})
    label = "The checks of this series, the latest on the right, and the levels between steps"
    return Figure("history", label, traces, _layout("check", len(checks), unit))


def _levels(levels: Sequence[Document], unit: Unit) -> dict[str, Any]:
    """A level line for each piece of the history; nothing joins them."""
    x: list[float | None] = []
    y: list[float | None] = []
    for level in levels:
        x += [level["first"] + 0.5, level["end"] + 0.5, None]
        y += [*unit([level["value"]] * 2), None]
    return _said(trace("level", x, y, color=ORANGE, mode="lines"), unit.hover)


def _of_check(check: Document) -> str:
    """plotly reads tags in what it shows."""
    accepted = f"<br>accepted: {html.escape(check['accepted'])}" if check["accepted"] else ""
    return f"{html.escape(check['at'][:16])} {html.escape(check['candidate'])}{accepted}"


def _limit(counts: Sequence[int], limit: float, unit: Unit) -> dict[str, Any]:
    ends = [0.5, len(counts) + 0.5]
    name = f"limit {ms(limit)} ms" if unit is LATENCY else f"limit {100 * limit:+.2f} %"
    line = trace(name, ends, unit([limit, limit]), color=ORANGE, mode="lines")
    return line | {"line": {"color": ORANGE, "dash": "dash"}, "hoverinfo": "skip"}


def _said(one: dict[str, Any], template: str) -> dict[str, Any]:
    """The same trace with what hovering shows."""
    return one | {"hovertemplate": f"{template}<extra>{one['name']}</extra>"}


def _layout(x_title: str, count: int, unit: Unit) -> dict[str, Any]:
    return {"xaxis": whole_axis(x_title, count), "yaxis": axis(unit.title)}
