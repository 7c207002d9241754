"""What calibration says beyond the LPNet's error: reach, cliffs, samples, where the time went."""

from __future__ import annotations

from pipeline.report.documents import Document
from pipeline.report.numbers import count, ms, percent, times
from pipeline.report.plots import BLUE, GREEN, GREY, ORANGE, Figure, axis, label_of, trace
from pipeline.report.tables import Table

COLORS = (BLUE, ORANGE, GREEN, GREY)
GROUPS_SHOWN = 12  # those that can give most


def reach(calibration: Document) -> Table:
    """The floor, the speed-up that it means, and what the dense latency consists of."""
    found, floor = calibration["feasibility"], calibration["floor"]
    parts = found["parts"]
    rows = (
        ("verdict", str(found["verdict"])),
        ("narrowest latency ms", f"{ms(floor['ms'])} ({times(floor['ratio'])} of dense)"),
        ("speed-up that is reachable", times(found["speedup"])),
        ("share that grows with multiply-adds %", percent(parts["compute"])),
        ("share that grows with activations %", percent(parts["traffic"])),
        ("share that no width changes %", percent(parts["fixed"])),
    )
    return Table("What pruning can reach on this target", (), rows, id="reach")


def groups(calibration: Document) -> Table:
    """Where the time goes: what narrowing each group alone removes, the most first."""
    found = sorted(calibration["feasibility"]["groups"], key=lambda item: -item["removable"])
    rows = tuple(
        (item["group"], count(item["channels"]), percent(item["removable"]))
        for item in found[:GROUPS_SHOWN]
    )
    columns = ("group", "channels", "removable latency, % of dense")
    return Table(f"Where the time goes, top {len(rows)} of {len(found)} groups", columns, rows)


def cliffs(calibration: Document) -> Table | None:
    """The step that each swept group's latency has, with its evidence."""
    rows = tuple(
        (
            item["group"],
            count(item["channels"]),
            _step(item["step"]),
            percent(item["drop"]),
            f"{item['evidence']:.1f}",
        )
        for item in calibration["cliffs"]
    )
    columns = (
        "group",
        "channels",
        "latency steps every",
        "one step, % of dense",
        "chi-square less than the next best step's",
    )
    return Table("Width cliffs", columns, rows, id="cliffs") if rows else None


def _step(step: int | None) -> str:
    if step is None:
        return "not clear"
    return f"{step} channels" if step > 1 else "no step of 8 or more"


def cliff_figure(calibration: Document) -> Figure | None:
    """Latency of the network against the channels taken from one group."""
    swept = calibration["cliffs"]
    if not swept:
        return None
    traces = []
    for item, color in zip(swept, COLORS * len(swept), strict=False):
        gone = [item["channels"] - width for width in item["widths"]]
        name = label_of(item["group"])
        shares = [100 * ratio for ratio in item["ratios"]]
        bars = {"type": "data", "array": [100 * error for error in item["errors"]], "thickness": 1}
        traces.append(trace(name, gone, shares, color=color) | {"error_y": bars})
    layout = {"xaxis": axis("channels taken from one group"), "yaxis": axis("latency, % of dense")}
    label = "Measured latency when one group alone is narrowed, with 95 % intervals"
    return Figure("cliffs", label, traces, layout)


def curve_figure(calibration: Document) -> Figure | None:
    """Held-out error against measured networks, chosen actively and at random."""
    points = calibration["curve"]
    if len(points) < 2:
        return None
    sizes = [point["samples"] for point in points]
    traces = [
        trace(name, sizes, [100 * point[name] for point in points], color=color)
        for name, color in (("active", BLUE), ("random", GREY))
    ]
    layout = {
        "xaxis": axis("networks the LPNet was fitted on"),
        "yaxis": axis("mean held-out error %") | {"rangemode": "tozero"},
    }
    label = "Error of the LPNet against samples, chosen afterwards from the networks measured here"
    return Figure("curve", label, traces, layout)


def phases(calibration: Document) -> Table:
    """Where calibration's own wall time went."""
    found = calibration["phases"]
    rows = tuple(
        (name, f"{seconds:.1f}", percent(found["share"][name]))
        for name, seconds in found["seconds"].items()
    )
    title = f"Where calibration's {found['wall_s']:.0f} s went; it stopped because"
    return Table(f"{title} {calibration['stopped']}", ("phase", "seconds", "%"), rows, id="phases")
