"""A network that joins its maps by a view, as many are written: it trains channels first."""

from __future__ import annotations

from pathlib import Path

import pytest

from .project import MODEL, SETTINGS, events, invoke, stages_run, write_plan

JOINED = "x.mean((2, 3))", "nn.functional.adaptive_avg_pool2d(x, 2).view(len(x), -1)"
WIDER = "nn.Linear(64, classes)", "nn.Linear(256, classes)"
TOLD = "trains channels first, which is slower than last: view size is not compatible"
TRAINING = ("prepare", "trace", "calibrate", "prune", "finetune")


@pytest.fixture
def viewing(project: Path) -> Path:
    text = MODEL
    for before, after in (JOINED, WIDER):
        assert before in text
        text = text.replace(before, after)
    (project / "tiny.py").write_text(text)
    settings = {name: dict(options) for name, options in SETTINGS.items()}
    settings["prune"] |= {"gate_epochs": 2, "gate_distill": 0.5, "worth_steps": 2}
    settings["finetune"] = {"finetune_epochs": 1, "distill": 0.5}
    write_plan(project / "plan.toml", settings)
    return project / "run"


def test_every_training_is_told_and_done(viewing: Path) -> None:
    for stage in TRAINING:
        result = invoke(stage, viewing, *(("--config", "plan.toml") if stage == "prepare" else ()))
        assert result.exit_code == 0, (stage, result.stderr)
        trains = stage in ("prepare", "prune", "finetune")
        assert result.stderr.count(TOLD) == trains, (stage, result.stderr)
    assert stages_run(events(viewing)) == list(TRAINING)


def test_asked_for_channels_first_nothing_is_told(viewing: Path) -> None:
    result = invoke("prepare", viewing, "--config", "plan.toml", "--no-channels-last")
    assert result.exit_code == 0, result.stderr
    assert TOLD not in result.stderr
