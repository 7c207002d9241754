"""Figures of the report, as plotly.js takes them: traces and a layout.

Text and grid colours come from the page's style sheet, so that one figure fits light and dark.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.documents import Document

BLUE, ORANGE, GREEN, GREY = "#3b7dd8", "#d9822b", "#2e9e6b", "#8a8f98"
BAND = "rgba(138, 143, 152, 0.3)"
BAND_SHARE = 0.05  # of the prediction, each way
BINS = 100
FEW = 6  # whole numbers on an axis
COSTS = {  # what the gates were trained under, and its unit
    "latency": ("predicted latency", " ms"),
    "flops": ("MACs", ""),
    "params": ("parameters", ""),
}
SHOWN_QUANTILE = 0.995  # the axis ends there: a few delayed calls would squeeze all others


@dataclass(frozen=True)
class Figure:
    """One plot; `label` says in words what it shows."""

    id: str
    label: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    is_wide: bool = False  # as wide as the page

    @property
    def height(self) -> int:
        """Pixels."""
        return int({**_LAYOUT, **self.layout}["height"])

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "traces": self.traces, "layout": {**_LAYOUT, **self.layout}}


_LAYOUT: dict[str, Any] = {
    "height": 340,
    "margin": {"l": 8, "r": 8, "t": 36, "b": 8},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, sans-serif", "size": 12},
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    "hoverlabel": {"bgcolor": "#20242b", "font": {"color": "#ffffff"}},
}


def scatter(calibration: Document) -> Figure:
    """Held-out predictions against measurements, with y = x and a band of 5 %."""
    anchor_ms = calibration["anchor_ms"]
    found = calibration["scatter"]
    x, y = (_in_ms(found, key, anchor_ms) for key in ("predicted", "measured"))
    low, high = (_in_ms(found, key, anchor_ms) for key in ("low", "high"))
    ends = np.array([min(x.min(), y.min()) * 0.97, max(x.max(), y.max()) * 1.03])
    bars = {
        "type": "data",
        "symmetric": False,
        "array": _plain(np.maximum(high - y, 0)),
        "arrayminus": _plain(np.maximum(y - low, 0)),
        "thickness": 1,
        "width": 0,
    }
    points = trace("networks", x, y, color=BLUE, mode="markers")
    points |= {"error_y": bars, "marker": {"color": BLUE, "size": 6, "opacity": 0.75}}
    equal = trace("measured = predicted", ends, ends, color=GREY, mode="lines")
    label = "Latency predicted by the LPNet against latency measured, networks held out of the fit"
    layout = {
        "height": 440,
        "xaxis": axis("predicted latency ms"),
        "yaxis": axis("measured latency ms"),
    }
    return Figure("scatter", label, [_band(ends), equal, points], layout)


def _band(ends: Any) -> dict[str, Any]:
    """The polygon between 5 % below and 5 % above y = x."""
    x = np.concatenate([ends, ends[::-1]])
    sides = np.repeat([1 + BAND_SHARE, 1 - BAND_SHARE], 2)
    shape = trace("± 5 %", x, x * sides, color=BAND, mode="lines")
    return shape | {"fill": "toself", "fillcolor": BAND, "line": {"width": 0}, "hoverinfo": "skip"}


def widths(prune: Document) -> Figure:
    """Channels of each group before and after."""
    groups = prune["widths"]
    names = [label_of(item["group"]) for item in groups]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label,
            "y": names,
            "x": [item[key] for item in groups],
            "marker": {"color": color},
        }
        for label, key, color in (("dense", "full", GREY), ("kept", "kept", BLUE))
    ]
    layout = {
        "height": min(90 + 28 * len(groups), 2400),
        "barmode": "group",
        "bargap": 0.25,
        "xaxis": axis("channels"),
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
    }
    return Figure("widths", "Channels of each group, dense and kept", traces, layout)


def training(name: str, history: Sequence[Document]) -> Figure:
    """Validation accuracy, and the loss on a second axis."""
    epochs = [epoch["epoch"] for epoch in history]
    losses = trace("loss", epochs, [epoch["loss"] for epoch in history], color=GREY)
    traces = [_val_top1(history), losses | {"yaxis": "y2"}]
    layout = _two_axes(f"epoch ({name})", epochs, "training loss")
    return Figure(f"training-{name}", f"Training curves: {name}", traces, layout)


def gates(prune: Document) -> Figure:
    """Validation accuracy under the gates, and the cost falling to the budget."""
    history = prune["history"]
    epochs = [epoch["epoch"] for epoch in history]
    name, unit = COSTS[prune.get("objective", "latency")]
    levels = {
        "budget": (prune.get("budget_ms", prune.get("budget_count")), "dash"),
        "aim (median)": (prune.get("aim_ms"), "dot"),
    }
    costs = [epoch.get("predicted") for epoch in history]
    traces = [
        _val_top1(history),
        trace(name, epochs, costs, color=GREEN) | {"yaxis": "y2"},
        *(
            _level(level, epochs, value, dash=dash)
            for level, (value, dash) in levels.items()
            if value is not None
        ),
    ]
    layout = _two_axes("epoch (gates)", epochs, f"{name}{unit}")
    label = f"Gated training: accuracy, and {name} against the budget"
    return Figure("training-gates", label, traces, layout)


def gate_health(prune: Document) -> Figure | None:
    """How the gates moved, epoch by epoch; None where no gates were trained."""
    history = [epoch for epoch in prune["history"] if epoch.get("flicker") is not None]
    if not history:
        return None
    epochs = [epoch["epoch"] for epoch in history]
    series = (
        ("open", "open", BLUE),
        ("live: a gradient reaches them", "live", GREEN),
        ("flipped since the epoch before", "flicker", ORANGE),
    )
    traces = [
        trace(name, epochs, [100 * epoch[key] for epoch in history], color=color)
        for name, key, color in series
    ]
    percent = {**axis("share of all gates %"), "rangemode": "tozero"}
    layout = {"xaxis": whole_axis("epoch (gates)", max(epochs)), "yaxis": percent}
    return Figure("gate-health", "Gates: how many are open, can learn, and flip", traces, layout)


def _level(name: str, epochs: Sequence[int], value: float, *, dash: str) -> dict[str, Any]:
    line = trace(name, epochs, [value] * len(epochs), color=ORANGE, mode="lines")
    return line | {"yaxis": "y2", "line": {"color": ORANGE, "dash": dash}}


def _val_top1(history: Sequence[Document]) -> dict[str, Any]:
    epochs = [epoch["epoch"] for epoch in history]
    shares = [100 * epoch["val_top1"] for epoch in history]
    return trace("validation top-1", epochs, shares, color=BLUE)


def _two_axes(x_title: str, epochs: Sequence[int], y2_title: str) -> dict[str, Any]:
    # tickmode: plotly would otherwise put odd values where the first axis has its ticks
    second = {**axis(y2_title), "overlaying": "y", "side": "right", "showgrid": False}
    return {
        "xaxis": whole_axis(x_title, max(epochs, default=1)),
        "yaxis": axis("validation top-1 %"),
        "yaxis2": {**second, "rangemode": "tozero", "tickmode": "auto"},
    }


def latency(samples: Document, budget_ms: float | None) -> Figure:
    """All clean samples of the engines as shares per bin, with the budget."""
    series = {name: np.asarray(samples[name], np.float64) for name in ("dense", "engine")}
    edges = _edges([*series.values()])
    middles = (edges[1:] + edges[:-1]) / 2
    traces = []
    for name, color in (("dense", GREY), ("engine", BLUE)):
        counts, _ = np.histogram(np.minimum(series[name], edges[-1]), edges)
        shares = 100 * counts / max(1, len(series[name]))
        bar = {"type": "bar", "name": f"{name} ({len(series[name]):,} calls)"}
        traces.append(
            {**bar, "x": _plain(middles), "y": _plain(shares), "marker": {"color": color}}
        )
    layout: dict[str, Any] = {
        "barmode": "overlay",
        "bargap": 0,
        "xaxis": axis("latency ms"),
        "yaxis": axis("share of calls %"),
    }
    if budget_ms is not None:
        layout |= _budget_line(budget_ms)
    label = "Distribution of measured latencies; the last bin holds all slower calls"
    return Figure("latency", label, traces, layout)


def _edges(series: Sequence[Any]) -> Any:
    """Bin edges from the fastest call to the slower engine's SHOWN_QUANTILE."""
    low = min(float(samples.min()) for samples in series)
    high = max(float(np.quantile(samples, SHOWN_QUANTILE)) for samples in series)
    return np.linspace(low, max(high, low * 1.001 + 1e-9), BINS + 1)


def _budget_line(budget_ms: float) -> dict[str, Any]:
    at = {"xref": "x", "x0": budget_ms, "x1": budget_ms, "yref": "paper", "y0": 0, "y1": 1}
    text = {"xref": "x", "x": budget_ms, "yref": "paper", "y": 1, "text": "budget"}
    return {
        "shapes": [{"type": "line", **at, "line": {"color": ORANGE, "dash": "dash"}}],
        "annotations": [{**text, "showarrow": False, "xanchor": "left", "yanchor": "top"}],
    }


def _in_ms(found: Sequence[Document], key: str, anchor_ms: float) -> Any:
    return np.array([item[key] for item in found], np.float64) * anchor_ms


def label_of(name: str) -> str:
    """The name as text: plotly reads tags."""
    return html.escape(name, quote=False)


def axis(title: str) -> dict[str, Any]:
    """An axis with its title, as every figure has it."""
    return {"title": {"text": title, "standoff": 8}, "automargin": True, "zeroline": False}


def whole_axis(title: str, most: int) -> dict[str, Any]:
    """An axis of whole numbers from one to `most`."""
    ticks: dict[str, Any] = {"tickformat": "d", "range": [0.5, most + 0.5]}
    if most <= FEW:
        ticks["dtick"] = 1  # plotly would put some between, and write them alike
    return axis(title) | ticks


def trace(name: str, x: Any, y: Any, *, color: str, mode: str = "lines+markers") -> dict[str, Any]:
    """One line or cloud of points."""
    one = {"type": "scatter", "mode": mode, "name": name, "x": _plain(x), "y": _plain(y)}
    size = 7 if mode == "markers" else 5
    return {**one, "line": {"color": color}, "marker": {"color": color, "size": size}}


def _plain(values: Any) -> list[Any]:
    """A list that JSON takes, no longer than a plot can show."""
    return [None if value is None else float(f"{value:.6g}") for value in values]
