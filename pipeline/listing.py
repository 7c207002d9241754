"""`pipeline targets`: what each target needs, and whether it is here."""

from __future__ import annotations

from typing import Any

import rich.console
from rich.table import Table

from targets import known_targets, load_target
from targets.base import TargetOptions


def describe_targets(only: str | None = None) -> list[dict[str, Any]]:
    """Every listed target: available or not, every reason, runtime and device."""
    names = known_targets() if only is None else {only: ""}
    return [_describe(name) for name in sorted(names)]


def _describe(name: str) -> dict[str, Any]:
    target = load_target(name, TargetOptions())
    reasons = target.is_available()
    described: dict[str, Any] = {
        "name": name,
        "precision": target.precision,
        "available": not reasons,
        "reasons": list(reasons),
    }
    if not reasons:
        described["fingerprint"] = target.fingerprint().to_json()
    return described


def draw_targets(found: list[dict[str, Any]]) -> None:
    table = Table()
    for column in ("target", "precision", "available", "runtime and device, or what is missing"):
        table.add_column(column)
    for item in found:
        print_ = item.get("fingerprint", {})
        what = "; ".join(item["reasons"]) or (
            f"{print_['runtime']}, {print_['threads']} threads, {print_['device']}"
        )
        table.add_row(item["name"], item["precision"], "yes" if item["available"] else "no", what)
    rich.console.Console(highlight=False).print(table)
