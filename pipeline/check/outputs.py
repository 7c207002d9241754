"""A check's result for people and for CI: terminal table, Markdown, JUnit XML, badge."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import rich.console
from rich.table import Table
from rich.text import Text

from pipeline.check.result import CheckResult, Gate, Subject, Verdict
from pipeline.files import disk_faults_told, write_atomically
from pipeline.report.numbers import ABSENT, ms, with_interval

COLOURS = {"pass": "#2e9e6b", "regression": "#c43d3d", "inconclusive": "#8a8f98"}
SHIELDS = {"pass": "brightgreen", "regression": "red", "inconclusive": "lightgrey"}
BADGE_LABEL = "latency"
CHARACTER_PX, PADDING_PX = 6.6, 12


def draw(result: CheckResult) -> None:
    """A table of the gates on the terminal, doubts and notes below."""
    console = rich.console.Console(highlight=False)
    against = "" if result.baseline is None else f" against {result.baseline.name}"
    title = Text(f"{result.candidate.name}{against} on {result.target}")  # no name is markup
    table = Table(title=title, title_style="")
    for column in ("gate", "found", "limit", "verdict"):
        table.add_column(column)
    for gate in result.gates:
        table.add_row(*map(Text, (gate.name, gate.found, gate.limit, gate.verdict)))
    console.print(table)
    for line in _lines(result):
        console.print(line, soft_wrap=True, markup=False)


def _lines(result: CheckResult) -> list[str]:
    subjects = {"candidate": result.candidate, "baseline": result.baseline}
    found = [f"{name}: {_latency(s)}" for name, s in subjects.items() if s is not None]
    found.append(
        f"{result.percentile} over {result.processes} fresh processes in {result.seconds:.0f} s, "
        f"intervals at {result.confidence:.0%} over all looks"
    )
    found += [f"{g.name}: {g.verdict} ({g.cause}): {g.detail}" for g in result.gates if g.detail]
    found += [f"doubt: {doubt}" for doubt in result.doubts]
    found += [f"note: {note}" for note in result.notes]
    if result.accepted:
        found.append(f"accepted: {result.accepted}")
    return [*found, f"verdict: {result.words}"]


def _latency(subject: Subject) -> str:
    return f"{with_interval(subject.latency.ms, subject.latency.interval, ms)} ms"


def markdown(result: CheckResult) -> str:
    """A section for a step summary or a comment."""
    against = "" if result.baseline is None else f" against {_cell(result.baseline.name)}"
    gates = [(g.name, _cell(g.found), _cell(g.limit), g.verdict) for g in result.gates]
    rows = [
        f"## Latency check: {result.words}",
        "",
        f"{_cell(result.candidate.name)}{against} on {result.target}",
        "",
        "| gate | found | limit | verdict |",
        "|---|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in gates),
        "",
        *(f"- {_cell(line)}" for line in _lines(result)[:-1]),
    ]
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    """Text that can neither end a table cell nor become markup."""
    for character in "\\`*_<>[]|#":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def append_markdown(path: Path, result: CheckResult) -> None:
    """Add the section to a summary that other steps write to, too."""
    with disk_faults_told(f"cannot write {path.name}", path), path.open("a", encoding="utf-8") as f:
        f.write(markdown(result))


def junit(result: CheckResult) -> bytes:
    """One test case a gate: a regression fails, an inconclusive gate is skipped."""
    counts: dict[Verdict, int] = {"pass": 0, "regression": 0, "inconclusive": 0}
    for gate in result.gates:
        counts[_judged(result, gate)] += 1
    suite = ElementTree.Element(
        "testsuite",
        name="pipeline check",
        tests=str(len(result.gates)),
        failures=str(counts["regression"]),
        errors="0",
        skipped=str(counts["inconclusive"]),
        time=f"{result.seconds:.3f}",
        timestamp=result.at,
    )
    for gate in result.gates:
        _add_case(suite, result, gate)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content


def _judged(result: CheckResult, gate: Gate) -> Verdict:
    taken = result.accepted and gate.name == "slowdown" and gate.verdict == "regression"
    return "pass" if taken else gate.verdict


def _add_case(suite: ElementTree.Element, result: CheckResult, gate: Gate) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        name=gate.name,
        classname=f"{result.target}.{_printable(result.candidate.name)}",
        time=f"{result.seconds if gate.name == 'slowdown' else 0:.3f}",
    )
    said = _printable(f"{gate.found}; {gate.limit}")
    kind = {"regression": "failure", "inconclusive": "skipped"}.get(_judged(result, gate))
    if kind is not None:
        detail = f"{said}; {gate.cause}: {gate.detail}" if gate.detail else said
        ElementTree.SubElement(case, kind, message=_printable(detail))
    ElementTree.SubElement(case, "system-out").text = _printable("\n".join([said, *_lines(result)]))


def _printable(text: str) -> str:
    """Text without the control characters that XML 1.0 cannot hold."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def badge(result: CheckResult, *, endpoint: bool) -> bytes:
    """The verdict as an SVG image, or as JSON that shields.io's endpoint badges read."""
    gate = result.gate("slowdown")
    value = ABSENT if gate is None or gate.value is None else f"{100 * gate.value:+.1f} %"
    message = result.words if gate is None else f"{result.words}, {value}"
    if not endpoint:
        return _svg(message, COLOURS[result.verdict]).encode()
    colour = SHIELDS[result.verdict]
    document = {"schemaVersion": 1, "label": BADGE_LABEL, "message": message, "color": colour}
    return json.dumps(document).encode()


def _svg(message: str, colour: str) -> str:
    left = round(len(BADGE_LABEL) * CHARACTER_PX + PADDING_PX)
    right = round(len(message) * CHARACTER_PX + PADDING_PX)
    texts = "".join(
        f'<text x="{x}" y="14" text-anchor="middle">{text}</text>'
        for x, text in ((left / 2, BADGE_LABEL), (left + right / 2, message))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{BADGE_LABEL}: {message}">'
        f'<rect width="{left}" height="20" fill="#444"/>'
        f'<rect x="{left}" width="{right}" height="20" fill="{colour}"/>'
        f'<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{texts}</g>'
        "</svg>\n"
    )


def write_badge(path: Path, result: CheckResult) -> None:
    """SVG, or shields.io's JSON where the file is called .json."""
    write_atomically(path, badge(result, endpoint=path.suffix == ".json"))
