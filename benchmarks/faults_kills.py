"""`kill -9` at a random time of a run, then the same command again: the same bundle."""

from __future__ import annotations

import os
import random
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults_project import Project, kill, line_of, make_project, require
from benchmarks.faults_run import (
    differences,
    faults_of_final_names,
    leftovers,
    measured,
    plan_of,
    require_whole,
    stage_at_the_end,
)
from calibration.measure import abandoned

LOOK_S = 0.02
CHECKS = ("bundle", "plan", "same", "rows", "whole", "tidy", "told")


@dataclass(frozen=True)
class Kill:
    """One run that was killed, and what its rerun made of it."""

    number: int
    at_s: float  # drawn: seconds of processor time since the start
    stage: str  # that was being done
    rows_kept: int  # measurements in the databases when it was killed
    rows_lost: int  # of those, changed or gone in the end
    rerun_code: int | None
    rerun_s: float
    faults: dict[str, str]  # check -> what was wrong; without faults empty

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def reference_run(target: str, folder: Path) -> tuple[Project, float]:
    """A run that nothing happened to, and the processor time of its processes in seconds."""
    project = make_project(folder)
    before = _of_children()
    project.line(target).require_done()
    seconds = _of_children() - before
    require_whole(project)
    return project, seconds


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def processor_s(pid: int) -> float:
    """Processor time of a process, of the children it has, and of those that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return own + sum(processor_s(int(child)) for child in children)


def killed_run(target: str, number: int, seed: int, folder: Path, *, like: Project, seconds: float
               ) -> Kill | None:  # fmt: skip
    """None if the run ended before the time that was drawn for it, of the `seconds` of another."""
    at_s = random.Random(f"{target} {seed} {number}").uniform(0, seconds)
    project = make_project(folder)
    process = project.start(*line_of(target), "--json")
    # on a shared machine seconds of the clock say little about how far a run is
    while process.poll() is None and processor_s(process.pid) < at_s:
        time.sleep(LOOK_S)
    if process.poll() is not None:
        process.communicate()
        return None
    kill(process)
    stage, whole = _stage_of(project), faults_of_final_names(project.run)
    rows, scratch = measured(project.run), set(abandoned())
    said = project.line(target)
    faults = {"whole": "; ".join(whole)} if whole else {}
    if said.code != 0:
        faults["bundle"] = f"exit code {said.code}: {said.stderr[-600:]}"
        kept: dict[Any, Any] = {}
    else:
        kept = measured(project.run)
        faults |= _faults(project, like, target, begun=stage != "start")
    lost = sum(kept.get(key) != row for key, row in rows.items())
    if lost:
        faults["rows"] = f"{lost} of {len(rows)} lost"
    # others measure here, too: what nobody held when it was killed, and nobody does now, is its own
    if left := {path.name for path in scratch.intersection(abandoned())}:
        faults["tidy"] = f"{faults.get('tidy', '')} {sorted(left)} in memory".strip()
    return Kill(number, at_s, stage, len(rows), lost, said.code, said.seconds, faults)


def _stage_of(project: Project) -> str:
    if not (project.run / "events.jsonl").exists():
        return "start"
    return stage_at_the_end(project.events())


def _faults(project: Project, like: Project, target: str, *, begun: bool) -> dict[str, str]:
    """What is wrong with a run that was killed and done again, by check."""
    found: dict[str, str] = {}
    if wrong := faults_of_final_names(project.run):
        found["bundle"] = "; ".join(wrong)
    if plan_of(project) != plan_of(like):
        found["plan"] = "the plan differs"
    if differing := differences(like, project, target):
        found["same"] = "; ".join(differing)
    if left := leftovers(project.run):
        found["tidy"] = "; ".join(left)
    if begun and (untold := unlike_story(project.events())):
        found["told"] = untold
    return found


def unlike_story(events: Sequence[Mapping[str, Any]]) -> str:
    """What events tell wrongly: each stage ends once, and what began twice was taken up again."""
    finished = [event["stage"] for event in events if event["event"] == "stage finished"]
    started = [event["stage"] for event in events if event["event"] == "stage started"]
    if len(finished) != len(set(finished)) or set(finished) != set(started):
        return f"started {started}, finished {finished}"
    twice = {stage for stage in started if started.count(stage) > 1}
    resumed = {event["stage"] for event in events if event.get("resumed")}
    return "" if twice <= resumed else f"begun twice: {twice}, told as resumed: {resumed}"


def require_like(one: Project, other: Project, target: str) -> None:
    """Two runs of a line that nothing happened to must agree, else nothing can be compared."""
    require(not (found := differences(one, other, target)), f"runs differ by themselves: {found}")
