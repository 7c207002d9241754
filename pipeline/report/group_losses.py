"""What the training loss said before any pruning: of each group narrowed alone, of whole plans."""

from __future__ import annotations

from typing import Any

from pipeline.report.documents import Document
from pipeline.report.plots import ORANGE, Figure, axis, label_of, trace

ROW, ROWS, MOST = 28, 130, 2400  # pixels: of a group, of all else, of the figure
NARROW = 16  # groups beside each other whose names can be read in half a page
SCALE: dict[str, Any] = {
    "colorscale": "Viridis",
    "showscale": True,
    "colorbar": {"title": {"text": "% kept"}, "thickness": 12},
}


def group_losses(losses: Document, trace_document: Document, prune: Document) -> Figure:
    """One row a group: where its widths leave the loss, and where it is without the branch."""
    full = {item["group"]: item["full"] for item in prune["widths"]}
    narrowed = [
        (group, item["kept"], item["loss"])
        for group, items in losses["groups"].items()
        for item in items
    ]
    gone = [
        (group, 0, losses["branches"][branch["name"]])
        for branch in trace_document.get("branches", ())
        for group in branch["groups"]
    ]
    shares = [100 * kept / full[group] for group, kept, _ in narrowed]
    marker = {"size": 9, "color": shares, "cmin": 0, "cmax": 100, **SCALE}
    traces = [_rows("narrowed alone", narrowed, full, losses, marker)]
    if gone:
        diamond = {"size": 9, "symbol": "diamond", "color": ORANGE}
        traces.append(_rows("its whole branch gone", gone, full, losses, diamond))
    layout = {
        "height": min(ROWS + ROW * len(full), MOST),
        "xaxis": axis("rise of the training loss, at most to that of guessing"),
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
    }
    label = "Training loss of the dense network with each group narrowed alone"
    return Figure("group-losses", label, traces, layout)


def plan_losses(found: Document, prune: Document) -> Figure:
    """One row a plan, the one that loses least above: what it keeps of each group."""
    widths = {item["group"]: item["full"] for item in prune["widths"]}
    full = [widths[group] for group in found["groups"]]
    plans = sorted(found["plans"], key=lambda plan: plan["loss"])
    rows = [list(zip(plan["kept"], full, strict=True)) for plan in plans]
    heat = {
        "type": "heatmap",
        "x": [label_of(group) for group in found["groups"]],
        "y": [_row_of(rank, plan) for rank, plan in enumerate(plans, 1)],
        "z": [[100 * kept / of for kept, of in row] for row in rows],
        "text": [[f"{kept} of {of} channels" for kept, of in row] for row in rows],
        "hovertemplate": "%{x}<br>%{y}<br>%{text}<extra></extra>",
        **{"zmin": 0, "zmax": 100, "xgap": 1, "ygap": 1},
        **SCALE,
    }
    layout = {
        "height": min(ROWS + ROW * len(plans), MOST),
        "xaxis": {"automargin": True, "type": "category"},
        "yaxis": axis("training loss → after a few steps")
        | {"autorange": "reversed", "automargin": True, "type": "category"},
    }
    label = (
        "Training loss of the dense network pruned to each plan that was asked as a whole, and "
        "after a few steps of training that of the best which, measured, use the budget; "
        "single: the plan that single losses lead to"
    )
    return Figure("plan-losses", label, [heat], layout, is_wide=len(full) > NARROW)


def _row_of(rank: int, plan: Document) -> str:
    """Rows of a category axis must differ, losses need not."""
    after = f" → {plan['after_steps']:.3f}" if "after_steps" in plan else ""
    first = " (single)" if plan["variant"] == 0 else ""
    return f"{rank}: {plan['loss']:.3f}{after}{first}"


def _rows(
    name: str,
    found: list[tuple[str, int, float]],
    full: dict[str, int],
    losses: Document,
    marker: dict[str, Any],
) -> dict[str, Any]:
    rises = [min(loss, losses["guessing"]) - losses["dense"] for *_, loss in found]
    one = trace(name, rises, [], color=ORANGE, mode="markers")
    return one | {
        "y": [label_of(group) for group, *_ in found],
        "text": [f"{kept} of {full[group]} channels" for group, kept, _ in found],
        "marker": marker,
    }
