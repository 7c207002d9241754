"""A user's small project: a network and a data set in files of their own, and how to run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from pipeline.cli import main

MODEL = '''
import torch
from torch import nn


def conv(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class Tiny(nn.Module):
    """Enough widths for an LPNet, one residual, a few milliseconds a step."""

    def __init__(self, classes):
        super().__init__()
        self.conv1, self.bn1 = conv(1, 32, stride=2), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = conv(32, 64), nn.BatchNorm2d(64)
        self.conv3, self.bn3 = conv(64, 64), nn.BatchNorm2d(64)
        self.conv4, self.bn4 = conv(64, 64), nn.BatchNorm2d(64)
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        y = torch.relu(self.bn3(self.conv3(x)))
        x = torch.relu(self.bn4(self.conv4(y)) + x)
        return self.linear(x.mean((2, 3)))


def tiny(num_classes):
    return Tiny(num_classes)
'''

DATA = '''
import numpy as np
from sklearn.datasets import load_digits


def small():
    """480 real digits at 16x16."""
    found = load_digits()
    images = (found.images[:480] * 15).astype(np.uint8).repeat(2, 1).repeat(2, 2)[:, None]
    labels = found.target[:480]
    return {
        "train": (images[:320], labels[:320]),
        "val": (images[320:400], labels[320:400]),
        "test": (images[400:], labels[400:]),
        "classes": [str(i) for i in range(10)],
    }


def poisoned():
    """Finite, but so large that the loss is not."""
    images = np.full((64, 1, 16, 16), 3e38, np.float32)
    labels = np.arange(64) % 10
    return {"train": (images, labels), "test": (images, labels), "classes": list("0123456789")}
'''

PREPARE = {"model": "tiny.py:tiny", "data": "digits.py:small", "dense_epochs": 2, "device": "cpu"}
SETTINGS: dict[str, dict[str, Any]] = {
    "prepare": {**PREPARE, "train_batch": 32, "dense_lr": 0.05},
    "calibrate": {"target": "ort-cpu", "threads": 1, "samples": 24, "precision": 0.02},
    # far from the budget: what is tested here is not how close the plan comes
    "prune": {"budget": "0.75x", "gate_epochs": 3, "margin": 0.1},
    "finetune": {"finetune_epochs": 2},
    "build": {"builds": 1},
    "verify": {"processes": 6, "block_seconds": 0.05},
}
STAGES = (
    "prepare",
    "trace",
    "calibrate",
    "prune",
    "finetune",
    "export",
    "build",
    "verify",
    "package",
)
TIMEOUT_S = 300
# two busy cores: threads that wait for each other make a step a hundred times slower
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def write_project(folder: Path) -> None:
    """`tiny.py`, `digits.py`, and every option in `plan.toml`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.py").write_text(MODEL)
    (folder / "digits.py").write_text(DATA)
    write_plan(folder / "plan.toml", SETTINGS)


def write_plan(path: Path, settings: dict[str, dict[str, Any]]) -> None:
    sections = [
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())
        for name, options in settings.items()
    ]
    path.write_text("\n".join(sections))


def invoke(*arguments: str | Path) -> Result:
    """The command in this process, where torch is imported already."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """The console command in a process group of its own."""
    return subprocess.Popen(
        [Path(sys.executable).with_name("pipeline"), *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, stdout, stderr


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the whole group, as the kernel does it when memory runs out."""
    os.killpg(process.pid, signal.SIGKILL)
    code, _, stderr = finish(process)
    assert code == -signal.SIGKILL, f"it ended before it was killed: {stderr}"


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + TIMEOUT_S
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def stages_run(events_of_one_command: Sequence[dict[str, Any]]) -> list[str]:
    return [line["stage"] for line in events_of_one_command if line["event"] == "stage started"]


def complaint_of(result: Result, code: int = 1) -> tuple[str, str]:
    """(message, fix) of a command under --json that failed as a user may see it."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("  fix: ")
    return lines[0].removeprefix("error: "), lines[1].removeprefix("  fix: ")
