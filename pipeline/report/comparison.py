"""The page of two certificates of one network: what was certified before, and what is now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report import tables
from pipeline.report.content import Identity, Page, Section, tables_of
from pipeline.report.numbers import (
    ABSENT,
    Format,
    count,
    ms,
    percent,
    points,
    small,
    times,
    with_interval,
)
from pipeline.report.page import budget_words
from pipeline.report.plots import BLUE, ORANGE, Figure, axis, trace
from pipeline.report.tables import Row, Table

Certificate = Mapping[str, Any]
BEFORE, NOW = "before", "now"
LONGEST = 160  # characters of a value
ROWS = [-0.6, 1.6]  # ends of the axis on which "now" is 0 and "before" 1


@dataclass(frozen=True)
class Claim:
    """A number that both certificates may state, by its dotted place."""

    label: str
    place: str
    form: Format
    interval: str = ""
    change: Callable[[float, float], str] | None = None  # of (was, is)


def _ratio(was: float, now: float) -> str:
    return times(now / was)


def _points(was: float, now: float) -> str:
    return f"{points(now - was)} points"


LATENCY = Claim(
    "median latency ms, 95 % interval",
    "latency_ms.engine.p50",
    ms,
    "latency_ms.engine.ci95",
    _ratio,
)
TOP1 = Claim(
    "top-1 %, 95 % interval",
    "accuracy.engine.top1",
    percent,
    "accuracy.engine.ci95",
    _points,
)
CLAIMS = (
    LATENCY,
    Claim("p90 latency ms", "latency_ms.engine.p90", ms, change=_ratio),
    Claim("p99 latency ms", "latency_ms.engine.p99", ms, change=_ratio),
    Claim("timed calls", "latency_ms.engine.samples", count),
    Claim("budget ms", "budget_ms", ms),
    TOP1,
    Claim("test images", "accuracy.engine.n", count),
    Claim("largest difference to torch, of the largest logit", "parity.max_rel", small),
    Claim("engine bytes", "engine_bytes.pruned", count, change=_ratio),
)


def changes(old: Any, new: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted place, was, is) of every value in which two documents differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from changes(old.get(key), new.get(key), f"{place}.{key}" if place else key)
    elif json.dumps(old) != json.dumps(new):
        yield place, old, new


def comparison_page(name: str, old: Certificate, new: Certificate) -> Page:
    """`old`: the certificate that `new` stands in for."""
    return Page(
        "wgates comparison of certificates",
        identity(name, old, new),
        headline(old, new),
        tuple(section for section in _sections(old, new) if section.has_content),
    )


def identity(name: str, old: Certificate, new: Certificate) -> Identity:
    labels = ("model", "data", "target", "budget")
    facts = tuple((label, str(new[label])) for label in labels if new.get(label) is not None)
    verdict, badge = budget_words(new["verdict"])
    if old["verdict"] != new["verdict"]:
        verdict = f"{verdict}, was {old['verdict']}"
    return Identity(name, facts, verdict, badge)


def headline(old: Certificate, new: Certificate) -> tuple[tuple[str, str], ...]:
    """(value, label) of the numbers that one looks for first."""
    was, now = (value_at(one, LATENCY.place) for one in (old, new))
    shown = [(f"{ms(now)} ms", f"median latency; {ms(was)} ms as certified before")]
    if (found := new.get("previous")) is not None:
        label = "as fast as the engine before, both measured on this set-up"
        shown.append((times(found["median"]), label))
    was, now = (value_at(one, TOP1.place) for one in (old, new))
    if now is not None:
        change = ABSENT if was is None else _points(was, now)
        shown.append((f"{percent(now)} %", f"top-1; {change} to before"))
    return tuple(shown)


def _sections(old: Certificate, new: Certificate) -> Iterator[Section]:
    figures = (latencies(old, new), accuracy(old, new))
    tables_ = (claims(old, new), *tables_of(same_processes(new)))
    yield Section("Before and now", tables=tables_, figures=tuple(filter(None, figures)))
    yield Section("Doubts", lines=tuple(map(str, new.get("doubts", ()))) or ("none recorded",))
    set_up = tuple(changes(old.get("fingerprint"), new["fingerprint"]))
    yield Section("What differs in the set-up", tables=tables_of(_changed(set_up, "set-up")))
    rest = tuple(item for item in changes(old, new) if not item[0].startswith("fingerprint"))
    yield Section("All else that differs", tables=tables_of(_changed(rest, "changes")))
    yield Section("Fingerprint", tables=(tables.fingerprint(new["fingerprint"]),))


def claims(old: Certificate, new: Certificate) -> Table:
    """Every claim beside the one before it; a dash where a certificate does not make it."""
    rows = [_row(claim, old, new) for claim in CLAIMS]
    rows.append(("verdict", str(old["verdict"]), str(new["verdict"]), ABSENT))
    return Table("", ("", BEFORE, NOW, "change"), tuple(rows), id="comparison")


def _row(claim: Claim, old: Certificate, new: Certificate) -> Row:
    was, now = (value_at(one, claim.place) for one in (old, new))
    shown = [
        with_interval(value, value_at(one, claim.interval) if claim.interval else None, claim.form)
        for one, value in ((old, was), (new, now))
    ]
    is_known = claim.change is not None and was and now is not None
    return claim.label, *shown, claim.change(was, now) if claim.change and is_known else ABSENT


def value_at(document: Certificate, place: str) -> Any:
    """The value at a dotted place; None where the certificate does not state it."""
    found: Any = document
    for key in place.split("."):
        found = None if found is None else found.get(key)
    return found


def same_processes(new: Certificate) -> Table | None:
    """Old engine and new one in the same fresh processes; None where the old one does not load."""
    found = new.get("previous")
    if found is None:
        return None
    said = with_interval(found["median"], found["ci95"], times)
    rows = (("latency of the engine before over the one now", said),)
    return Table("Both engines in the same fresh processes", (), rows, id="same-processes")


def latencies(old: Certificate, new: Certificate) -> Figure | None:
    """Median and interval of both, and the budget of the new one."""
    dots = _dots(LATENCY, (old, new), 1.0)
    if dots is None:
        return None
    traces, budget = [dots], value_at(new, "budget_ms")
    if budget is not None:
        line = trace("budget", [budget, budget], ROWS, color=ORANGE, mode="lines")
        traces.append(line | {"line": {"color": ORANGE, "dash": "dash"}, "hoverinfo": "x+name"})
    label = "Median latency as certified before and now, with 95 % intervals"
    return Figure("comparison-latency", label, traces, _layout("latency ms"))


def accuracy(old: Certificate, new: Certificate) -> Figure | None:
    """Top-1 and interval of both; None where neither was measured."""
    dots = _dots(TOP1, (old, new), 100.0)
    if dots is None:
        return None
    label = "Top-1 through the engine as certified before and now, with 95 % intervals"
    return Figure("comparison-accuracy", label, [dots], _layout("top-1 %"))


def _dots(claim: Claim, both: tuple[Certificate, Certificate], scale: float) -> Any:
    """A dot with its interval for each certificate that makes the claim; None if neither does."""
    places, values, up, down = [], [], [], []
    for place, certificate in zip((1, 0), both, strict=True):
        value = value_at(certificate, claim.place)
        if value is not None:
            low, high = value_at(certificate, claim.interval) or (value, value)
            places.append(place)
            values.append(scale * value)
            up.append(scale * (high - value))
            down.append(scale * (value - low))
    if not places:
        return None
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 2}
    name = "median" if claim is LATENCY else "top-1"
    dots = trace(name, values, places, color=BLUE, mode="markers")
    return dots | {"error_x": bars | {"color": BLUE}, "hoverinfo": "x+name"}


def _layout(title: str) -> dict[str, Any]:
    rows = {"tickvals": [0, 1], "ticktext": [NOW, BEFORE], "automargin": True, "zeroline": False}
    return {"height": 200, "xaxis": axis(title), "yaxis": {**rows, "range": ROWS}}


def _changed(found: tuple[tuple[str, Any, Any], ...], name: str) -> Table | None:
    """Places with their values before and now; None where nothing differs."""
    rows = tuple((place, _short(was), _short(is_)) for place, was, is_ in found)
    return Table("", ("", BEFORE, NOW), rows, id=name) if rows else None


def _short(value: Any) -> str:
    if value in (None, ""):
        return ABSENT
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
