"""What a folder holds: runs, bundles and check pages, each in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import DeployError
from pipeline.report import MANIFEST, render_check, render_report
from pipeline.report.documents import FILES, STAGES, Document, Documents
from pipeline.report.numbers import ABSENT, ms, percent, points, times
from pipeline.report.rendering import damage_told, record_in, render_template

RUN = "run.toml"
EVENTS = "events.jsonl"
COLUMNS = ("", "model", "target", "budget", "verdict", "latency ms", "top-1 %", "date")
BADGES = {"met": "met", "pass": "met", "missed": "missed", "regression": "missed"}
TAIL = 1 << 14  # bytes in which the last event stands

Kind = Literal["run", "bundle", "check"]


@dataclass(frozen=True)
class Item:
    """One line of the listing."""

    path: str  # POSIX, from the listed folder
    kind: Kind
    model: str = ABSENT  # of a check: what was held against what
    target: str = ABSENT
    budget: str = ABSENT
    verdict: str = ABSENT
    latency: str = ABSENT
    accuracy: str = ABSENT
    at: str = ""  # ISO 8601, UTC
    fault: str = ""  # why there is nothing to show

    @property
    def badge(self) -> str:
        """The CSS class of the verdict."""
        return BADGES.get(self.verdict, "inconclusive" if "incon" in self.verdict else "none")

    @property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """(column, text), the name left out."""
        values = (self.model, self.target, self.budget, self.verdict, self.latency, self.accuracy)
        at = self.at[:16].replace("T", " ") or ABSENT
        return tuple(zip(COLUMNS[1:], (*values, at), strict=True))


def listing_page(folder: Path) -> str:
    """The page that lists a folder, the latest first."""
    content = {"name": folder.resolve().name, "columns": COLUMNS, "items": items_of(folder)}
    return render_template("listing.html", content)


def item_page(folder: Path, path: str) -> str | None:
    """The page of what is listed under this path; None if nothing is.

    It is made anew from the documents: no HTML that lies in the folder is handed on.
    """
    for found, kind in _found_in(folder):
        if found.relative_to(folder).as_posix() == path:
            if kind != "check":
                _refuse_outside(folder, found)
                return render_report(found)
            record = record_in(found)
            return None if record is None else render_check(record)
    return None


def items_of(folder: Path) -> tuple[Item, ...]:
    """Every run, bundle and check page under a folder, the latest first."""
    return tuple(
        sorted((_item(folder, *found) for found in _found_in(folder)), key=_order, reverse=True)
    )


def _order(item: Item) -> tuple[str, str]:
    return item.at, item.path


def _found_in(folder: Path) -> Iterator[tuple[Path, Kind]]:
    """(path, kind) of all; no link is followed, and runs and bundles are not searched further."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        is_run, is_bundle = RUN in files, MANIFEST in files and "certificate.json" in files
        folders[:] = [] if is_run or is_bundle else sorted(f for f in folders if f[0] != ".")
        if is_run or is_bundle:
            yield here, "run" if is_run else "bundle"
        for name in sorted(files):
            path = here / name
            if name.endswith(".html") and not path.is_symlink() and _is_check(record_in(path)):
                yield path, "check"


def _is_check(record: Document | None) -> bool:
    return record is not None and record.get("kind") == "check"


def _item(folder: Path, path: Path, kind: Kind) -> Item:
    """A line that says what is wrong, where something is."""
    name = path.relative_to(folder).as_posix()
    read = {"run": _of_run, "bundle": _of_bundle, "check": _of_check}[kind]
    try:
        if kind != "check":
            _refuse_outside(folder, path)
        with damage_told(name, "make it anew"):
            return Item(name, kind, **read(path))
    except DeployError as error:
        return Item(name, kind, fault=error.message)


def _refuse_outside(folder: Path, run: Path) -> None:
    """DeployError if a link leads a run's document out of the listed folder."""
    root = folder.resolve()
    for name in FILES.values():
        if not (run / name).resolve().is_relative_to(root):
            raise DeployError(f"{name} lies outside of the folder", fix="list the folder it is in")


# --- lines --------------------------------------------------------------------------------------


def _of_run(path: Path) -> dict[str, Any]:
    documents = Documents.read(path, STAGES)
    known = {key: str(documents.first(key) or ABSENT) for key in ("model", "target", "budget")}
    found = known | {"at": _last_event(path)}
    if documents.verify is None:
        return found | {"verdict": f"{documents.missing_stages()[0]} is next"}
    return found | _of_certificate(documents.verify)


def _of_bundle(path: Path) -> dict[str, Any]:
    from pipeline.bundle import Bundle

    bundle = Bundle.open(path)
    certificate = bundle.certificate
    known = {key: str(certificate.get(key) or ABSENT) for key in ("model", "target", "budget")}
    return known | {"at": _utc(bundle.manifest.created)} | _of_certificate(certificate)


def _of_certificate(certificate: Document) -> dict[str, Any]:
    engine, speedup = certificate["latency_ms"]["engine"], certificate.get("speedup") or {}
    faster = speedup.get("median")
    shares = certificate.get("accuracy") or {}
    top1, dense = ((shares.get(step) or {}).get("top1") for step in ("engine", "dense"))
    change = "" if top1 is None or dense is None else f" ({points(top1 - dense)})"
    return {
        "verdict": str(certificate["verdict"]),
        "latency": ms(engine["p50"]) + ("" if faster is None else f" ({times(faster)})"),
        "accuracy": percent(top1) + change,
    }


def _of_check(path: Path) -> dict[str, Any]:
    result = (record_in(path) or {})["result"]
    candidate, baseline = result["candidate"], result["baseline"]
    gates = {gate["name"]: gate for gate in result["gates"]}
    slowdown, accuracy = gates.get("slowdown"), gates.get("accuracy")
    against = "" if baseline is None else f" against {baseline['name']}"
    shown = "" if slowdown is None else f" ({points(slowdown['value'])} %)"
    return {
        "model": f"{candidate['name']}{against}",
        "target": str(result["target"]),
        "budget": str((slowdown or gates["budget"])["limit"]),
        "verdict": str(result["verdict"]),
        "latency": ms(candidate["latency"]["ms"]) + shown,
        "accuracy": ABSENT if accuracy is None else str(accuracy["verdict"]),
        "at": _utc(result["at"]),
    }


def _last_event(run: Path) -> str:
    """When something last happened in a run; "" if no whole event is there."""
    try:
        with (run / EVENTS).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            return _utc(json.loads(line)["at"])
        except (ValueError, LookupError, TypeError):
            continue  # the line that a killed run was writing
    return ""


def _utc(stated: str) -> str:
    """The same time in UTC; ValueError if it is none."""
    return datetime.fromisoformat(stated).astimezone(UTC).isoformat(timespec="seconds")
