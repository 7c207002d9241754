"""Tables of the network's structure: what can be pruned, what stays full, what went as a whole."""

from __future__ import annotations

from pipeline.report.documents import Document
from pipeline.report.numbers import ABSENT, count, of_dense
from pipeline.report.tables import Row, Table


def feasibility(trace: Document) -> Table:
    """What is left when every group has its narrowest width."""
    rows = tuple(
        (label, count(trace[key]), of_dense(trace[f"floor_{key}"], trace[key]))
        for label, key in (("MACs", "macs"), ("parameters", "params"))
    )
    return Table("What pruning can reach at most", ("", "dense", "narrowest"), rows)


def frozen_groups(trace: Document) -> Table | None:
    rows = tuple(
        (group["name"], count(group["channels"]), group["kind"], group["frozen"])
        for group in trace["groups"]
        if group["frozen"] is not None
    )
    columns = ("group", "channels", "kind", "why it stays full")
    return Table("Frozen groups", columns, rows, id="frozen") if rows else None


def branches(trace: Document, prune: Document | None) -> Table | None:
    """Each residual branch that may go as a whole, and those that may not; None: not asked for."""
    kept = {item["group"]: item["kept"] for item in prune["widths"]} if prune is not None else {}
    rows: list[Row] = []
    for branch in trace.get("branches", ()):  # older traces know of none
        groups = branch["groups"]
        rows.append((branch["name"], ", ".join(groups), _outcome([kept.get(g) for g in groups])))
    for item in trace.get("kept_branches", ()):
        rows.append((ABSENT, item["group"], f"stays: {item['reason']}"))
    columns = ("last layer", "groups inside", "outcome")
    return Table("Residual branches", columns, tuple(rows), id="branches") if rows else None


def _outcome(kept: list[int | None]) -> str:
    """Of a branch that keeps this many channels of each group; None: not known yet."""
    if None in kept:
        return "may go"
    return "stays" if any(kept) else "removed"
