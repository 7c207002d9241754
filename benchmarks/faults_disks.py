"""Disks, clocks and other processes that are in the way of a run."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from benchmarks.faults_place import Fault, Place
from benchmarks.faults_project import (
    SOURCES,
    Project,
    UntriedError,
    copy_until,
    kill,
    limited,
    line_of,
    require,
    wait_until,
)
from benchmarks.faults_run import differences, faults_of_final_names, require_whole

DISK_BYTES = 16 << 20
LEFT_BYTES = 40_000
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # of prctl
SECOND = 8.0  # seconds between commands on a folder that is in use


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A real file system of its own, of a few megabytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        raise UntriedError(str(missing)) from missing
    if done.returncode:
        raise UntriedError(done.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def full_disk(place: Place, number: int) -> str:
    stage = ("prepare", "calibrate", "finetune", "export", "build", "package")[number]
    with disk(place.folder / "disk") as small:
        project = copy_until(place.finished("fake"), small / "project", stage)
        free = shutil.disk_usage(small).free
        # prepare writes little: its disk has no room at all
        left = 4096 if stage == "prepare" else LEFT_BYTES
        (small / "other").write_bytes(bytes(free - left))
        said = project.call(stage, "run")
        message = said.require_told("free the disk")
        full = "No space left on device" in message or "database or disk is full" in message
        require(full, message)
        _require_untouched(project, stage)
        (small / "other").unlink()
        project.call(stage, "run").require_done()
        _require_readable(project)
    return f"{stage}: {message}"


def cut_short(place: Place, number: int) -> str:
    stage, size = (
        *(("calibrate", 5_000), ("prune", 40_000)),
        *(("finetune", 20_000), ("package", 20_000)),
    )[number]
    project = copy_until(place.finished("ort-cpu"), place.folder / "project", stage)
    said = project.call(stage, "run", preexec_fn=limited(resource.RLIMIT_FSIZE, size))
    message = said.require_told()
    _require_untouched(project, stage)
    project.call(stage, "run").require_done()
    return f"{stage}: {message}"


def read_only_disk(place: Place, number: int) -> str:
    stage = ("prepare", "verify")[number]
    with disk(place.folder / "disk") as small:
        project = copy_until(place.finished("fake"), small / "project", stage)
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        message = project.call(stage, "run").require_told(
            "Read-only file system", "use a folder on a disk that can be written"
        )
        _require_untouched(project, stage)
        subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
        project.call(stage, "run").require_done()
    return f"{stage}: {message}"


def no_right(place: Place, number: int) -> str:
    stage = ("prepare", "finetune")[number]
    project = copy_until(place.finished("fake"), place.folder / "project", stage)
    project.run.chmod(0o500)
    said = project.call(stage, "run", preexec_fn=_as_anybody)
    message = said.require_told("Permission denied", "make it writable for you")
    _require_untouched(project, stage)
    project.run.chmod(0o700)
    project.call(stage, "run").require_done()
    return f"{stage}: {message}"


def _as_anybody() -> None:
    """The program that follows may not pass over modes of files, even if root starts it."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0):
        raise OSError("the capability cannot be dropped")


def _require_untouched(project: Project, stage: str) -> None:
    """The stage that failed left nothing under a final name, and the others are whole."""
    require(not (project.run / stage).exists(), f"{stage} has its final name")
    require(not (project.run / "bundle").exists(), "there is a bundle")
    wrong = faults_of_final_names(project.run)
    require(not wrong, f"not whole: {wrong}")


def _require_readable(project: Project) -> None:
    """Every event is whole, whatever became of the one that met the full disk."""
    require(bool(project.events()), "no events")


def clock_that_jumps(place: Place, number: int) -> str:
    library = place.folder / "clock.so"
    compile_ = ["cc", "-shared", "-fPIC", "-o", str(library), str(SOURCES / "jumping_clock.c")]
    try:
        subprocess.run([*compile_, "-ldl"], check=True, capture_output=True)
    except FileNotFoundError as missing:
        raise UntriedError(str(missing)) from missing
    target = ("fake", "fake", "ort-cpu")[number]
    project = place.project(LD_PRELOAD=str(library))
    project.line(target).require_done()
    require_whole(project)
    times = [datetime.fromisoformat(event["at"]) for event in project.events()]
    back = sum(after < before for before, after in pairwise(times))
    require(back > 0, "the clock never went back: nothing was tried")
    differing = differences(place.finished(target), project, target)
    require(not differing, f"{differing}")
    return f"{target}: {back} of {len(times)} events before the one they follow"


def two_runs(place: Place, number: int) -> str:
    """A second and a third command while the first is at work."""
    project = place.project()
    started = time.perf_counter()
    first = project.start(*line_of("fake"), "--json")
    wait_until((project.run / ".lock").exists, first)
    refused = 0
    while first.poll() is None and refused < 3:
        others = (line_of("fake"), ("prepare", "run"), ("verify", "run"))[refused]
        said = project.call(*others)
        if first.poll() is None:
            said.require_told(f"another process (pid {first.pid}) works on run", "--out")
            refused += 1
            time.sleep(SECOND)
    project.finish(first, started).require_done()
    require(refused > 0, "the first was too quick")
    require_whole(project)
    differing = differences(place.finished("fake"), project, "fake")
    require(not differing, f"{differing}")
    return f"{refused} refused"


def lock_of_the_dead(place: Place, number: int) -> str:
    project = place.project()
    first = project.start(*line_of("fake"), "--json")
    wait_until((project.run / "prepare.partial").exists, first)
    kill(first)
    require((project.run / ".lock").exists(), "no lock was left")
    project.call("prepare", "run").require_done()
    return "taken over"


FAULTS = (
    Fault("full disk", "disk", "The disk is full (a file system of its own) when a stage begins.",
          "one line with its fix; nothing under a final name; with room the same command goes on",
          6, full_disk),
    Fault("cut short", "disk", "The kernel refuses to let a file grow, so a write fails halfway.",
          "the same", 4, cut_short),
    Fault("read-only disk", "disk", "The file system of the run is mounted read-only.",
          "the same", 2, read_only_disk),
    Fault("no right", "disk", "The run folder may not be written to.", "the same", 2, no_right),
    Fault("clock", "machine", "The wall clock jumps a day back and ahead all the time.",
          "the run ends with the bundle of a run with a steady clock", 3, clock_that_jumps),
    Fault("two runs", "machine", "More commands on the folder of a run that is at work.",
          "each is refused with the pid of the first, which ends as if alone", 2, two_runs),
    Fault("dead lock", "machine", "The holder of a run folder was killed.",
          "the next command takes it over", 2, lock_of_the_dead),
)  # fmt: skip
