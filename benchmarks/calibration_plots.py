"""Draws benchmarks/results/calibration.json: predicted against measured, and errors by samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMNS = 5
INK, OURS, OTHERS = "#33373d", "#0072b2", "#b3b8c0"

mpl.rcParams["svg.hashsalt"] = "wgates"  # the same file from the same numbers


def draw(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `calibration-scatter.svg` and `calibration-curves.svg`; where they are."""
    cases = document["cases"]
    drawn = {"scatter": (_scatter, (14, 6.2)), "curves": (_curves, (14, 6.2))}
    paths = []
    for name, (plot, size) in drawn.items():
        rows = -(-len(cases) // COLUMNS)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, COLUMNS, squeeze=False)
        for place, (case, found) in zip(axes.flat, cases.items(), strict=False):
            plot(place, found)
            place.set_title(case, fontsize=10, color=INK)
        for place in axes.flat[len(cases) :]:
            place.set_axis_off()
        path = folder / f"calibration-{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        paths.append(path)
    return paths


def _scatter(axes: Axes, found: Mapping[str, Any]) -> None:
    held = found["held_out"]
    ends = [0.95 * min(held["measured"]), 1.05 * max(held["measured"])]
    axes.fill_between(
        ends,
        [0.95 * x for x in ends],
        [1.05 * x for x in ends],
        color="#e8eef5",
        label="within 5 %",
    )
    axes.plot(ends, ends, color=OTHERS, linewidth=1)
    axes.scatter(held["measured"], held["predicted"], s=8, color=OURS)
    ours = found["methods"]["LPNet"]
    axes.text(
        *(0.04, 0.94),
        f"{found['samples']} samples, mean {ours['mean']:.1%}\n{ours['within_5']:.0%} within 5 %",
        transform=axes.transAxes,
        verticalalignment="top",
        fontsize=8,
        color=INK,
    )
    axes.set_xlabel("measured, share of dense", fontsize=8)
    axes.set_ylabel("predicted", fontsize=8)
    axes.tick_params(labelsize=7)


def _curves(axes: Axes, found: Mapping[str, Any]) -> None:
    """The calibration's own curve: held-out error by samples, chosen actively and at random."""
    samples = [point["samples"] for point in found["curve"]]
    for way, colour in (("random", OTHERS), ("active", OURS)):
        errors = [100 * point[way] for point in found["curve"]]
        axes.plot(samples, errors, marker="o", markersize=3, color=colour, label=way)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("measured networks", fontsize=8)
    axes.set_ylabel("mean held-out error, %", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)
