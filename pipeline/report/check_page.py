"""The page of a check: its gates, the evidence behind them, and the history."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.report import check_plots, tables
from pipeline.report.content import Identity, Page, Section, tables_of
from pipeline.report.documents import Document
from pipeline.report.numbers import ABSENT, count, ms, points, times, with_interval
from pipeline.report.plots import Figure
from pipeline.report.tables import Table

BADGES = {"pass": "met", "regression": "missed", "inconclusive": "inconclusive"}


def check_page(record: Document) -> Page:
    """`record`: the result of a check, and its history or None."""
    result, history = record["result"], record["history"]
    return Page(
        "wgates latency check",
        identity(result),
        headline(result),
        tuple(section for section in _sections(result, history) if section.has_content),
        record=record,
    )


def identity(result: Document) -> Identity:
    name = result["candidate"]["name"]
    facts = [("target", str(result["target"])), ("judged", str(result["percentile"]))]
    if result["baseline"] is not None:
        name = f"{name} against {result['baseline']['name']}"
    facts.append(("at", str(result["at"])))
    accepted = result["accepted"] and result["verdict"] == "pass"
    verdict = "pass (accepted)" if accepted else str(result["verdict"])
    return Identity(name, tuple(facts), verdict, BADGES.get(result["verdict"], "none"))


def headline(result: Document) -> tuple[tuple[str, str], ...]:
    candidate = result["candidate"]["latency"]
    shown = [(f"{ms(candidate['ms'])} ms", f"candidate, {result['percentile']}")]
    for gate in result["gates"]:
        if gate["name"] == "slowdown":
            value = f"{points(gate['value'])} %"
            shown.insert(0, (value, f"slowdown; {gate['limit']}, {gate['verdict']}"))
        if gate["name"] == "accuracy" and result["baseline"] is not None:
            value = f"{points(_negative(gate['value']))} points"
            shown.append((value, f"top-1; {gate['limit']}, {gate['verdict']}"))
    shown.append((count(result["processes"]), f"fresh processes in {result['seconds']:.0f} s"))
    return tuple(shown)


def _negative(loss: float | None) -> float | None:
    return None if loss is None else -loss


def _sections(result: Document, history: Document | None) -> Iterator[Section]:
    yield Section("Gates", tables=(gates(result),), lines=tuple(_reasons(result)))
    doubts = tuple(f"{doubt}" for doubt in result["doubts"]) or ("none recorded",)
    yield Section("Doubts", lines=doubts)
    yield Section("Notes", lines=tuple(map(str, result["notes"])))
    yield Section("How the verdict came about", figures=tuple(_course(result)))
    yield Section(
        "Latency",
        figures=(check_plots.blocks(result["candidate"], result["baseline"]),),
        tables=(latency(result),),
    )
    if history is not None:
        figures = (check_plots.history(history),)
        yield Section("History", figures=figures, tables=tables_of(steps(history)))
    yield Section("Fingerprint", tables=(tables.fingerprint(result["fingerprint"]),))


def _reasons(result: Document) -> Iterator[str]:
    """Why a gate has no verdict, and why a slowdown was taken."""
    for gate in result["gates"]:
        if gate["detail"]:
            yield f"{gate['name']}: {gate['cause']}: {gate['detail']}"
    if result["accepted"]:
        yield f"accepted: {result['accepted']}"


def _course(result: Document) -> Iterator[Figure]:
    for gate in result["gates"]:
        if gate["course"] is not None:
            yield check_plots.looks(gate)
            yield check_plots.processes(gate)


def gates(result: Document) -> Table:
    """What was found, what was allowed, and the verdict of each."""
    rows = tuple(
        (gate["name"], gate["found"], gate["limit"], gate["verdict"]) for gate in result["gates"]
    )
    caption = f"Intervals at {result['confidence']:.0%} over all looks together"
    return Table(caption, ("gate", "found", "limit", "verdict"), rows, id="gates")


def latency(result: Document) -> Table:
    """Both engines as they were timed."""
    rows = tuple(
        (
            name,
            side["name"],
            with_interval(side["latency"]["ms"], side["latency"]["interval"], ms),
            count(side["latency"]["calls"]),
            side["sha256"][:16],
        )
        for name in ("candidate", "baseline")
        if (side := result[name]) is not None
    )
    columns = ("", "name", f"{result['percentile']} ms, interval", "timed calls", "SHA-256")
    return Table("", columns, rows, id="check-latency")


def steps(history: Document) -> Table | None:
    """Where the level moved; None where it never did."""
    levels, checks = history["levels"], history["checks"]
    rows = []
    for before, after in zip(levels, levels[1:], strict=False):
        first = checks[after["first"]]
        shown = (ABSENT, ABSENT)
        if history["is_share"]:
            change = (1 + after["value"]) / (1 + before["value"]) - 1
            shown = (f"{points(before['value'])} %", f"{points(after['value'])} %")
        else:
            change = after["value"] / before["value"] - 1
            shown = (f"{ms(before['value'])} ms", f"{ms(after['value'])} ms")
        rows.append((f"{first['at'][:10]} {first['candidate']}", *shown, times(1 + change)))
    columns = ("since", "level before", "level after", "latency, times the one before")
    return Table("Steps", columns, tuple(rows), id="steps") if rows else None
