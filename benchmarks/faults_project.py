"""The tiny project that every fault happens to, and the console command as a user starts it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SOURCES = Path(__file__).parent / "faults_sources"
STAGES = ("prepare", "trace", "calibrate", "prune", "finetune", "export", "build", "verify",
          "package")  # fmt: skip
TIMEOUT_S = 900.0
SETTINGS: dict[str, dict[str, Any]] = {
    "prepare": {
        **{"model": "network.py:tiny", "data": "images.py:small", "device": "cpu"},
        **{"dense_epochs": 1, "train_batch": 32, "dense_lr": 0.05},
    },
    "calibrate": {"threads": 1, "samples": 20, "precision": 0.05, "cliffs": False},
    "prune": {"gate_epochs": 1, "margin": 0.1},
    "finetune": {"finetune_epochs": 1},
    "build": {"builds": 1},
    "verify": {"block_seconds": 0.02, "cold_starts": 0, "counterfactual": False},
}
# what each line settles: on `fake` latencies are a formula, so the whole of it must repeat; on
# `ort-cpu` a clock decides them, so there the budget is a count, and plan and weights repeat
LINES: dict[str, tuple[str, ...]] = {
    "fake": ("--target", "fake", "--budget", "0.75x", "--processes", "5"),
    "ort-cpu": (
        *("--target", "ort-cpu", "--objective", "flops", "--budget", "0.6x"),
        *("--processes", "1"),
    ),
}
RUN = "run"


class SurpriseError(AssertionError):
    """What happened is not what was to be expected."""


class UntriedError(Exception):
    """This machine does not let the fault be made."""


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SurpriseError(otherwise)


@dataclass(frozen=True)
class Said:
    """How a command ended; `code` is None if it had to be ended."""

    code: int | None
    stdout: str
    stderr: str
    seconds: float

    def require_done(self) -> None:
        require(self.code == 0, f"exit code {self.code}: {self.stderr[-600:]}")

    def require_told(self, *words: str, code: int = 1) -> str:
        """That it failed in one line with its fix, which hold these words; the line."""
        require(self.code == code, f"exit code {self.code}: {self.stderr[-600:]}")
        lines = self.stderr.splitlines()
        fine = len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("  fix: ")
        require(fine, f"not one line and its fix: {self.stderr[-600:]}")
        missing = [word for word in words if word not in self.stderr]
        require(not missing, f"no {missing} in {self.stderr}")
        return lines[0].removeprefix("error: ")


@dataclass(frozen=True)
class Project:
    """A folder with a network, images and options; commands are started in it."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        return self.folder / RUN

    def start(self, *arguments: str, **popen: Any) -> subprocess.Popen[str]:
        """The console command in a process group of its own."""
        return subprocess.Popen(
            [Path(sys.executable).with_name("pipeline"), *arguments],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **popen,
        )

    def call(self, *arguments: str, timeout_s: float = TIMEOUT_S, **popen: Any) -> Said:
        """The command to its end, quiet but for its result and its errors."""
        started = time.perf_counter()
        return self.finish(self.start(*arguments, "--json", **popen), started, timeout_s)

    def finish(
        self, process: subprocess.Popen[str], started: float, timeout_s: float = TIMEOUT_S
    ) -> Said:
        code: int | None
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
            code = process.returncode
        except subprocess.TimeoutExpired:
            stdout, stderr = kill(process)
            code = None
        return Said(code, stdout, stderr, time.perf_counter() - started)

    def line(self, target: str, *flags: str, **popen: Any) -> Said:
        """The whole line; later flags beat earlier ones."""
        return self.call(*line_of(target), *flags, **popen)

    def events(self) -> list[dict[str, Any]]:
        text = (self.run / "events.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


def line_of(target: str) -> tuple[str, ...]:
    return ("run", "--config", "plan.toml", "--out", RUN, *LINES[target])


def make_project(folder: Path, **environment: str) -> Project:
    """The sources and `plan.toml` in a new folder."""
    folder.mkdir(parents=True)
    for source in SOURCES.iterdir():
        if source.suffix == ".py":
            shutil.copy(source, folder)
    images, labels = _digits()
    np.savez(folder / "digits.npz", images=images, labels=labels)
    sections = [
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())
        for name, options in SETTINGS.items()
    ]
    (folder / "plan.toml").write_text("\n".join(sections), encoding="utf-8")
    return Project(folder, environment)


@cache
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(n, 8, 8) pixels and (n,) labels; read here, as each command would lose a second by it."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images * 15).astype(np.uint8), found.target.astype(np.int64)


def copy_until(source: Project, folder: Path, stage: str, **environment: str) -> Project:
    """A copy of a finished run in which that stage is the next to do."""
    made = make_project(folder, **environment)
    made.run.mkdir()
    shutil.copy2(source.run / "run.toml", made.run)
    for done in STAGES[: STAGES.index(stage)]:
        shutil.copytree(source.run / done, made.run / done)
    return made


def kill(process: subprocess.Popen[str]) -> tuple[str, str]:
    """SIGKILL to the whole group; (stdout, stderr) so far."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + TIMEOUT_S
    while not reached():
        require(process.poll() is None, f"it ended by itself: {process.returncode}")
        require(time.monotonic() < limit, "it never came so far")
        time.sleep(0.01)


def limited(what: int, size: int) -> Callable[[], None]:
    """For `preexec_fn`: the kernel refuses more than `size` bytes of a resource."""
    return lambda: resource.setrlimit(what, (size, size))
