"""What of prune trains: its options, plans from elsewhere, and two processes that are one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from calibration import several
from calibration.lpnet import one_thread
from calibration.widths import Plan
from pipeline.errors import DeployError
from pipeline.options import PrepareOptions, PruneOptions, Share
from pipeline.run import Run
from pipeline.stages import STAGES
from pipeline.stages.company import _Other
from pipeline.stages.learner import Lesson, gate_settings, read_plan

from .test_company import Listener

MODEL = """
from torch import nn

def block(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

def tiny(num_classes):
    return nn.Sequential(
        *block(3, 32), *block(32, 32), *block(32, 64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes),
    )
"""
PREPARED = {
    **{"data": "digits", "image_size": 12, "train_limit": 200, "dense_epochs": 1, "device": "cpu"},
    **{"target": "fake", "samples": 24, "train_batch": 32},
}
# of a few epochs some follow the gates: weights behind the plan's masks
PRUNED = {"budget": "0.8x", "gate_epochs": 3, "worth_plans": 2, "worth_steps": 2}


def test_every_option_of_the_gates_reaches_them() -> None:
    options = PruneOptions(
        gate_lr=0.5,
        weight_lr=0.03,
        dual_lr=0.7,
        surrogate="tanh",
        gate_start="drawn",
        detach_gate_input=False,
        budget_mode="penalty",
        alpha=3.0,
        live_share=Share(0.5),
        ramp_share=Share(0.3),
        min_width=Share(0.25),
    )
    found = gate_settings(options, PrepareOptions(weight_decay=1e-3), {"conv1": 16})
    assert (found.gate_lr, found.weight_lr, found.weight_decay) == (0.5, 0.03, 1e-3)
    assert (found.dual_lr, found.mode, found.alpha) == (0.7, "penalty", 3.0)
    assert (found.live_share, found.ramp_share, found.min_width) == (0.5, 0.3, 0.25)
    form = found.form
    assert (form.surrogate, form.start, form.detach_input) == ("tanh", "drawn", False)
    assert form.steps == {"conv1": 16}
    plain = gate_settings(PruneOptions(snap_gates=False), PrepareOptions(), {"conv1": 16})
    assert plain.form.steps == {}


def test_a_plan_is_read_back(tmp_path: Path) -> None:
    plan = Plan("abc", {"conv1": (0, 2)})
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_json()))
    assert read_plan(path) == plan


@pytest.mark.parametrize("text", [None, "{", "[]", '{"schema": 1, "kept": {}}'])
def test_a_file_that_is_no_plan_is_refused_with_a_fix(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DeployError) as caught:
        read_plan(path)
    assert caught.value.fix


@pytest.mark.parametrize("plan", [None, Plan("abc", {"conv1": (0, 2)})])
def test_a_lesson_is_told_as_json(plan: Plan | None) -> None:
    lesson = Lesson({"conv1": 16}, round=2, plan=plan, course="steady")
    assert Lesson.from_json(json.loads(json.dumps(lesson.to_json()))) == lesson


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together") / "run"
    model = folder.parent / "model.py"
    model.write_text(MODEL)
    run = Run(folder, STAGES)
    run.resolve({"model": f"{model}:tiny", **PREPARED})
    for stage in ("prepare", "trace", "calibrate"):
        run.execute(STAGES[stage], Listener())
    return folder


def prune(calibrated: Path, folder: Path, **options: Any) -> Run:
    shutil.copytree(calibrated, folder)
    run = Run(folder, STAGES)
    run.resolve({**PRUNED, **options})
    with pytest.MonkeyPatch.context() as patched:
        # the dense network that one process trained, however many learn now
        patched.setattr(Run, "_require_fresh", lambda *_: None)
        run.execute(STAGES["prune"], Listener())
    return run


@one_thread()
@pytest.mark.slow  # four interpreters that import torch
@pytest.mark.parametrize("gate_lr", [1.0, 0.0])
def test_two_processes_prune_as_one(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate_lr: float
) -> None:
    started: list[int] = []
    start = _Other.start

    def counted(*arguments: Any) -> _Other:
        started.append(1)
        return start(*arguments)

    monkeypatch.setattr(_Other, "start", counted)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # beside, as here
    monkeypatch.setattr(several, "BLOCK_S", 0.02)  # this target's times are all alike
    alone = prune(calibrated, tmp_path / "one", gate_lr=gate_lr)
    assert not started
    together = prune(calibrated, tmp_path / "two", gate_lr=gate_lr, devices=2)
    assert len(started) == 2  # while gates learn, and behind the plan's masks
    assert not torch.distributed.is_initialized()

    plans = [run.document("prune", "plan.json") for run in (alone, together)]
    assert plans[0] == plans[1]
    assert min(len(kept) for kept in plans[0]["kept"].values()) < 32
    courses = [run.document("prune", "prune.json")["history"] for run in (alone, together)]
    losses = [[epoch["loss"] for epoch in course] for course in courses]
    assert len(losses[0]) == PRUNED["gate_epochs"]
    # sums are rounded differently; where gates learn, a last digit may decide which one is open
    assert losses[1] == pytest.approx(losses[0], rel=1e-2 if gate_lr else 1e-5)
    if not gate_lr:
        expected, found = (
            load_file(run.read("prune", "gated.safetensors")) for run in (alone, together)
        )
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=2e-5, rtol=2e-5)
