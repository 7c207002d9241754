"""Memory that runs out, and processes and targets that hang, crash or talk nonsense."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path

from benchmarks.faults_images import write_pictures
from benchmarks.faults_place import Fault, Place
from benchmarks.faults_project import (
    STAGES,
    Project,
    copy_until,
    limited,
    require,
    wait_until,
)
from benchmarks.faults_run import lost_candidates, require_whole

ROOM = (192 << 20, 96 << 20, 32 << 20)  # bytes beyond what the small step takes
LARGE = ("prepare", "run", "--config", "plan.toml", "--data", "images.py:large")
WATCHDOG_MINUTES = "0.2"
DIST_INFO = "faulty_target-1.dist-info"


# memory and processes -----------------------------------------------------------------------


def out_of_memory(place: Place, number: int) -> str:
    """A step of 256 images gets the memory that 16 at once take, and some more."""
    flags = (*LARGE, "--train-batch", "256")
    peak = _peak_data(place.project("small"), *flags, "--micro-batch", "16")
    project, started = place.project("large"), time.perf_counter()
    most = limited(resource.RLIMIT_DATA, peak + ROOM[number])
    said = project.finish(project.start(*flags, preexec_fn=most), started)
    said.require_done()
    told = re.search(r"(\d+) images at once do not fit .*; going on with (\d+)", said.stderr)
    require(told is not None, f"nothing was told of memory: {said.stderr[-600:]}")
    document = json.loads((project.run / "prepare/prepare.json").read_text(encoding="utf-8"))
    micro_batch = document["history"][-1].get("micro_batch")
    require(bool(micro_batch) and micro_batch < 256, f"recorded: {micro_batch}")
    return f"went on with {micro_batch} of 256 images at once"


def _peak_data(project: Project, *command: str) -> int:
    """The most bytes of private memory that a command which must succeed had at any time."""
    process, most, started = project.start(*command), 0, time.perf_counter()
    while process.poll() is None:
        found = re.search(r"VmData:\s+(\d+) kB", _status(process.pid))
        most = max(most, int(found[1]) << 10) if found else most
        time.sleep(0.01)
    project.finish(process, started).require_done()
    return most


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def killed_loader(place: Place, number: int) -> str:
    project = place.project()
    write_pictures(project.folder / "pictures", count=200)
    flags = ("--data", "images.py:streamed", "--model", "network.py:tiny3", "--dense-epochs", "15")
    command = ("prepare", "run", "--config", "plan.toml", *flags)
    started = time.perf_counter()
    process = project.start(*command, "--json")
    checkpoint = project.run / "prepare.partial" / "dense.checkpoint.safetensors"
    wait_until(lambda: checkpoint.exists() and bool(_loaders(process.pid)), process)
    victims = _loaders(process.pid)
    os.kill(victims[number % len(victims)], signal.SIGKILL)
    said = project.finish(process, started)
    message = said.require_told("a process that decodes images died", "lower --loader-workers")
    require(not (project.run / "prepare").exists(), "prepare has its final name")
    again = project.finish(project.start(*command), time.perf_counter())
    again.require_done()
    require("dense: resumed after epoch" in again.stderr, "it began anew")
    return message


def _loaders(pid: int) -> list[int]:
    """Children of a training process that were forked from it, oldest first."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = Path(f"/proc/{pid}/cmdline").read_bytes()
    return [int(c) for c in children if _command(int(c)) == own]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


# targets ------------------------------------------------------------------------------------


def _with_faulty_target(project: Project, how: str) -> Project:
    """An installed package with the target `faulty`, as third parties add one."""
    site = project.folder / "site"
    info = site / DIST_INFO
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-target\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[wgates.targets]\nfaulty = faulty_target:Faulty\n")
    shutil.move(project.folder / "faulty_target.py", site)
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    return Project(project.folder, {"PYTHONPATH": path, "FAULTY": how})


def _do(project: Project, first: str, *, before: str | None = None) -> None:
    """The stages from `first` to the one before `before`, or to the end; all must succeed."""
    end = len(STAGES) if before is None else STAGES.index(before)
    for stage in STAGES[STAGES.index(first) : end]:
        project.call(stage, "run").require_done()


def bad_candidates(place: Place, number: int) -> str:
    """Some candidates hang, crash, or are killed in the process that measures them."""
    how = ("hang", "crash", "killed")[number]
    copied = copy_until(place.finished("fake"), place.folder / "project", "calibrate")
    project = _with_faulty_target(copied, how)
    flags = ("--target", "faulty", "--watchdog", WATCHDOG_MINUTES, "--samples", "26")
    said = project.call("calibrate", "run", *flags)
    said.require_done()
    lost = lost_candidates(project.run / "calibrate" / "latency.sqlite")
    words = {"hang": "took longer than", "crash": "SIGSEGV", "killed": "SIGKILL"}[how]
    require(bool(lost), "no candidate was bad: nothing was tried")
    require(all(words in reason for reason in lost), f"marked: {lost}")
    return f"{how}: {len(lost)} candidates marked, the rest measured: {lost[0]}"


def nonsense(place: Place, number: int) -> str:
    """The engine answers NaN to every image."""
    copied = copy_until(place.finished("fake"), place.folder / "project", "calibrate")
    project = _with_faulty_target(copied, "nan")
    project.call("calibrate", "run", "--target", "faulty").require_done()
    _do(project, "prune", before="verify")
    message = project.call("verify", "run").require_told("not finite")
    require(not (project.run / "verify").exists(), "there is a certificate")
    return message


def hang_in_a_stage(place: Place, number: int) -> str:
    """The runtime hangs where no process of its own can be ended: building, answering images."""
    how, stage = (("build hangs", "build"), ("answer hangs", "verify"))[number]
    copied = copy_until(place.finished("fake"), place.folder / "project", "calibrate")
    project = _with_faulty_target(copied, "nothing")
    project.call(
        *("calibrate", "run", "--target", "faulty", "--watchdog", WATCHDOG_MINUTES)
    ).require_done()
    _do(project, "prune", before=stage)
    hanging = Project(project.folder, {**project.environment, "FAULTY": how})
    message = hanging.call(stage, "run").require_told("did not come back", "--watchdog")
    require(not (project.run / stage).exists(), f"{stage} has ended")
    require(project.events()[-1]["event"] == "stage failed", "the events do not tell it")
    _do(project, stage)
    require_whole(project)
    return message


def crash_in_verify(place: Place, number: int) -> str:
    """The timing process of verify is killed; the command says so, and goes on when repeated."""
    project = copy_until(place.finished("fake"), place.folder / "project", "verify")
    started = time.perf_counter()
    process = project.start("verify", "run", "--json")
    found: list[int] = []

    def timing() -> bool:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found[:] = [int(c) for c in children if b"targets.blocks" in _command(int(c))]
        return bool(found)

    wait_until(timing, process)
    os.kill(found[0], signal.SIGKILL)
    message = project.finish(process, started).require_told("the timing process failed")
    require(not (project.run / "verify").exists(), "there is a certificate")
    _do(project, "verify")
    require_whole(project)
    return message


FAULTS = (
    Fault("memory", "processes", "A training step of 256 images does not fit into memory.",
          "it says so, goes on with fewer images at once, and records how many", 3, out_of_memory),
    Fault("loader", "processes", "A process that decodes images is killed during training.",
          "one line with its fix; the same command goes on from the last checkpoint", 3,
          killed_loader),
    Fault("candidates", "processes",
          "Candidates hang, crash or are killed while they are measured.",
          "each is ended by the watchdog or costs its process; it is marked, the rest is measured",
          3, bad_candidates),
    Fault("hang", "processes", "The runtime hangs in a stage: building the engine, or answering.",
          "one line with its fix after --watchdog; the same command goes on", 2, hang_in_a_stage),
    Fault("timing", "processes", "A process that times the engine for verify is killed.",
          "one line; no certificate; the same command goes on", 2, crash_in_verify),
    Fault("NaN engine", "numbers", "The built engine answers NaN.",
          "verify refuses it: no certificate", 1, nonsense),
)  # fmt: skip
