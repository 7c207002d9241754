"""Tables of what stands behind the verdict: paired accuracy, other precisions, cold starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.report.documents import Document
from pipeline.report.numbers import ABSENT, count, ms, percent, points, times, with_interval
from pipeline.report.tables import Table

MEBIBYTE = 1 << 20


def attribution(certificate: Document) -> Table | None:
    """Each step against the one before it, image by image."""
    rows = tuple(
        (
            f"{step['before']} to {step['after']}",
            with_interval(step["change"], step["ci95"], points),
            count(step["lost"]),
            count(step["won"]),
            count(step["changed"]),
            f"{step['p']:.2g}",
        )
        for step in certificate.get("attribution", ())
    )
    columns = (
        *("step", "change of top-1, points, 95 % interval", "lost", "won", "labels changed"),
        "McNemar p",
    )
    caption = "Step by step on the same test images"
    return Table(caption, columns, rows, id="attribution") if rows else None


def counterfactual(certificate: Document) -> Table | None:
    """The dense network at other precisions: would quantisation alone have done?"""
    found = certificate.get("counterfactual")
    if not found or not found["alternatives"]:
        return None
    rows = [
        (
            f"dense, {item['target']}",
            _median(item["latency_ms"]),
            ABSENT if item["top1_loss"] is None else percent(item["top1_loss"]),
            item["reason"] or ABSENT,
        )
        for item in found["alternatives"]
    ]
    if "dense" in found:
        own = certificate["target"]
        rows.insert(0, (f"dense, {own}", _median(found["dense"]), ABSENT, ABSENT))
        rows.append((f"pruned, {own}", _median(found["engine"]), ABSENT, _speedup(found)))
    columns = ("network", "median ms, 95 % interval", "top-1 lost on validation, points", "")
    caption = "Would a lower precision alone have done?"
    return Table(caption, columns, tuple(rows), id="counterfactual")


def _median(latency: Document | None) -> str:
    return ABSENT if latency is None else with_interval(latency["p50"], latency["ci95"], ms)


def _speedup(found: Document) -> str:
    speedup = found["speedup"]
    said = with_interval(speedup["median"], speedup["ci95"], times)
    return f"{said} as fast as the fastest dense one, {found['best']}"


def footprint(certificate: Document) -> Table | None:
    """Cold start and memory of processes that load one engine and answer."""
    found = certificate.get("footprint")
    if not found:
        return None
    rows = tuple(
        (label, *(_number(found[name][key], scale) for name in ("dense", "engine")))
        for label, key, scale in (
            ("seconds from start to first answer", "ready_s", 1.0),
            ("of that, loading, s", "load_s", 1.0),
            ("first call ms", "first_call_ms", 1.0),
            ("later calls ms", "warm_call_ms", 1.0),
            ("resident before loading, MiB", "before_bytes", MEBIBYTE),
            ("resident after the first answer, MiB", "loaded_bytes", MEBIBYTE),
            ("most resident, MiB", "peak_bytes", MEBIBYTE),
        )
    )
    starts = found["engine"]["starts"]
    caption = f"Cold start and memory, medians of {starts} processes"
    return Table(caption, ("", "dense", "pruned"), rows, id="footprint")


def _number(value: float, scale: float) -> str:
    return f"{value / scale:.3g}" if scale == 1.0 else f"{value / scale:.1f}"


def flips(document: Document) -> Iterator[tuple[str, tuple[dict[str, Any], ...]]]:
    """(heading, images) of each step that changed labels: a picture and what was said of it."""
    for step in document["steps"]:
        if step["count"]:
            before, after = step["before"], step["after"]
            more = f", the first {len(step['shown'])}" if step["count"] > len(step["shown"]) else ""
            images = tuple(
                {
                    "png": item["png"],
                    "text": f"image {item['image']}: {item['label']}; {before} said "
                    f"{item[before]}, {after} {item[after]}",
                }
                for item in step["shown"]
            )
            yield f"{before} to {after}: {count(step['count'])} labels changed{more}", images
