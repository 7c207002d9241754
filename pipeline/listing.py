"""`pipeline targets`: what each target needs, and what is here of it."""

from __future__ import annotations

import inspect
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import rich.console
from rich.table import Table
from rich.text import Text

from targets import known_targets, load_target
from targets.base import Target, TargetOptions


def describe_targets(only: str | None = None) -> list[dict[str, Any]]:
    """Every listed target, or one: what can be built and run here, and every reason why not."""
    names = known_targets() if only is None else {only: ""}
    return [_describe(load_target(name, TargetOptions())) for name in sorted(names)]


def _describe(target: Target) -> dict[str, Any]:
    reasons, unbuildable = target.is_available(), target.is_buildable()
    return {
        "name": target.name,
        "about": _about(target),
        "precision": target.precision,
        "builds": not unbuildable,
        "available": not reasons,
        "build_reasons": list(unbuildable),
        "reasons": list(reasons),
        "versions": _versions(target.packages),
        "options": sorted(target.takes),
        "install": target.install,
        "fingerprint": None if reasons else target.fingerprint().to_json(),
    }


def _about(target: Target) -> str:
    """The first line of the target's docstring, without the name that it begins with."""
    first, _, _ = inspect.cleandoc(type(target).__doc__ or "").partition("\n")
    return first.removeprefix(f"`{target.name}`: ")


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # what is missing is said by the reasons, with its fix
    return found


def draw_targets(found: list[dict[str, Any]]) -> None:
    """Targets with the same answer share a row."""
    table = Table(show_lines=True)
    for column in ("target", "builds", "runs", "device, or what is missing"):
        table.add_column(column)
    rows: dict[tuple[str, str, str], list[str]] = {}
    for item in found:
        what = _device(item) or "\n".join(f"- {reason}" for reason in item["reasons"])
        rows.setdefault((_yes(item["builds"]), _yes(item["available"]), what), []).append(
            item["name"]
        )
    for (builds, runs, what), names in rows.items():
        table.add_row("\n".join(names), builds, runs, Text(what))  # "[trt]" is no markup here
    console = rich.console.Console(highlight=False)
    console.print(table)
    console.print("more about one: pipeline targets --explain NAME")


def draw_explanation(item: dict[str, Any]) -> None:
    """Everything about one target, with the fix of all that is missing."""
    console = rich.console.Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{item['name']}: {item['about']}")
    versions = ", ".join(f"{name} {value}" for name, value in item["versions"].items())
    console.print(f"  installed: {versions or 'nothing of it'}")
    for verb, able, reasons in (
        ("build", item["builds"], item["build_reasons"]),
        ("run", item["available"], item["reasons"]),
    ):
        console.print(f"  can {verb} here: {_yes(able)}")
        for reason in reasons:
            console.print(f"    - {reason}")
    if device := _device(item):
        console.print(f"  device: {device}")
    for setting in (item["fingerprint"] or {}).get("settings", ()):
        console.print(f"    {setting}")
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in item["options"])
    console.print(f"  options: {flags}")
    if item["install"] and not (item["builds"] and item["available"]):
        console.print(f"  install: {item['install']}")


def _device(item: dict[str, Any]) -> str:
    print_ = item["fingerprint"]
    if print_ is None:
        return ""
    return f"{print_['runtime']}, {print_['threads']} threads, {print_['device']}"


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"
