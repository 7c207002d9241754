"""What a run folder must be: whole under its final names, and the same whatever happened to it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.faults_project import STAGES, Project, require
from pipeline.bundle import Bundle
from pipeline.errors import BundleError
from pipeline.files import digest, digests

RECORD, LOCK = "stage.json", ".lock"
# files of a bundle that cannot repeat, and why; certificates are compared without their clocks
VARYING = {
    "certificate.json": "the time that a build took; on `ort-cpu` every latency",
    "report.html": "the same, and the seconds of each epoch",
    "sbom.cdx.json": "when it was made, and a serial number",
    "manifest.json": "when it was made, and the digests of the files above",
    "manifest.sha256": "the manifest's digest",
}
CLOCKED = {
    "fake": ("build",),
    "ort-cpu": ("build", "latency_ms", "speedup", "doubts", "fingerprint"),
}


def faults_of_final_names(folder: Path) -> list[str]:
    """What is not whole under a final name of a run, whenever it was ended."""
    found = [
        f"{stage}: {wrong}"
        for stage in STAGES
        if (folder / stage).exists() and (wrong := _stage_fault(folder / stage))
    ]
    if (folder / "bundle").exists():
        try:
            Bundle.open(folder / "bundle")
        except BundleError as error:
            found.append(f"bundle: {error}")
    for name in ("run.toml", "events.jsonl"):
        if (folder / name).exists() and not (folder / name).read_text("utf-8").endswith("\n"):
            found.append(f"{name} ends within a line")
    return found


def _stage_fault(folder: Path) -> str:
    try:
        wrote = json.loads((folder / RECORD).read_text(encoding="utf-8"))["wrote"]
    except (OSError, ValueError, KeyError) as error:
        return f"no record: {error}"
    there = digests(folder, without=RECORD)
    # what is published has moved beside the stages
    missing = [n for n in wrote if n not in there and not n.startswith("bundle/")]
    changed = [n for n in there if there[n] != wrote.get(n)]
    return f"missing {missing}, changed {changed}" if missing or changed else ""


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders in a run that is done."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(
        name
        for name in names
        if name != LOCK
        and (name.rpartition("/")[2].startswith(".") or ".partial" in name or name.endswith("-wal"))
    )


def require_whole(project: Project) -> Bundle:
    """A run that is done, whose bundle opens, with nothing half or temporary in it."""
    require(not (wrong := faults_of_final_names(project.run)), f"not whole: {wrong}")
    require(not (left := leftovers(project.run)), f"left over: {left}")
    return Bundle.open(project.run / "bundle")


def differences(reference: Project, other: Project, target: str) -> list[str]:
    """In what two bundles of the same line differ, beside what a clock decides."""
    folders = reference.run / "bundle", other.run / "bundle"
    one, two = (digests(folder, without="") for folder in folders)
    found = [f"only in one: {name}" for name in sorted(set(one) ^ set(two))]
    found += [n for n in sorted(set(one) & set(two)) if n not in VARYING and one[n] != two[n]]
    texts = [_certified(folder / "certificate.json", target) for folder in folders]
    found += [f"certificate: {key}" for key in texts[0] if texts[0][key] != texts[1].get(key)]
    return found


def _certified(path: Path, target: str) -> Mapping[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in document.items() if key not in CLOCKED[target]}


def plan_of(project: Project) -> str:
    return digest(project.run / "bundle" / "plan.json")


Rows = dict[tuple[str, str], tuple[Any, ...]]


def measured(folder: Path) -> Rows:
    """(skeleton, widths) -> when it was measured and its raw samples, of all databases of a run."""
    found: Rows = {}
    for stage in ("calibrate", "prune"):
        for name in (stage, f"{stage}.partial"):
            found |= rows_of(folder / name / "latency.sqlite")
    return found


def rows_of(database: Path) -> Rows:
    """What a database holds; of a copy, since reading one folds its log into it."""
    if not database.exists():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        for file in database.parent.glob(f"{database.name}*"):
            shutil.copy(file, folder)
        connection = sqlite3.connect(Path(folder) / database.name)
        try:
            rows = connection.execute(
                "SELECT skeleton, widths, measured_at, candidate, anchor FROM measurement"
            ).fetchall()
        except sqlite3.OperationalError as error:  # killed before the tables were there
            require("no such table" in str(error), f"{database.name}: {error}")
            rows = []
        finally:
            connection.close()
    return {(skeleton, widths): tuple(rest) for skeleton, widths, *rest in rows}


def lost_candidates(database: Path) -> list[str]:
    """The reasons of the candidates that are marked."""
    connection = sqlite3.connect(database)
    try:
        return [reason for (reason,) in connection.execute("SELECT reason FROM lost")]
    finally:
        connection.close()


def stage_at_the_end(events: Iterable[Mapping[str, Any]]) -> str:
    """The stage that was being done when the events end; "between stages" if none was."""
    current = "start"
    for event in events:
        if event["event"] == "stage started":
            current = str(event["stage"])
        elif event["event"] == "stage finished":
            current = "between stages"
    return current
