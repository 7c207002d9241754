"""A stage in two processes: one leads and writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import TrainingError
from pipeline.evaluation import BestByValidation
from pipeline.run import Run
from pipeline.stages import STAGES

MODEL = """
import sys
from torch import nn

def tiny(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )

def broken_beside(num_classes):
    if "--out" not in sys.argv and sys.argv[-1].isdigit():  # what a process beside is given
        raise SystemExit("no memory left here")
    return tiny(num_classes)
"""
SMALL = {"data": "digits", "image_size": 16, "train_limit": 200, "dense_epochs": 2, "device": "cpu"}


class Listener:
    def progress(self, label: str, done: int, total: int, note: str = "") -> None: ...

    def say(self, text: str) -> None: ...


def prepare(folder: Path, factory: str = "tiny", **options: object) -> Run:
    model = folder.parent / "model.py"
    model.write_text(MODEL)
    run = Run(folder, STAGES)
    run.resolve({"model": f"{model}:{factory}", **SMALL, **options})
    run.execute(STAGES["prepare"], Listener())
    return run


@pytest.mark.slow  # an interpreter that imports torch
def test_two_processes_prepare_what_one_prepares(tmp_path: Path) -> None:
    alone = prepare(tmp_path / "one")
    together = prepare(tmp_path / "two", devices=2)
    expected = load_file(alone.read("prepare", "dense.safetensors"))
    found = load_file(together.read("prepare", "dense.safetensors"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)
    documents = [run.document("prepare", "prepare.json") for run in (alone, together)]
    assert documents[0]["top1"] == documents[1]["top1"]
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_after_a_resume_both_count_right_answers_of_the_best_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    monkeypatch.setattr(BestByValidation, "restore", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, devices=2)
    monkeypatch.undo()
    # the best is another one than the last, which a process beside would go on with
    best = folder / "prepare.partial" / "best.safetensors"
    tensors = load_file(best)
    tensors["5.weight"] = -tensors["5.weight"]
    save_file(tensors, best, {"val_top1": "1.0"})
    run = prepare(folder, devices=2)
    dense = run.read("prepare", "dense.safetensors")
    alone = prepare(tmp_path / "alone", dense_epochs=0, weights=dense)
    told = [one.document("prepare", "prepare.json")["top1"] for one in (run, alone)]
    assert told[0] == told[1]


@pytest.mark.slow
def test_a_process_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="lost each other.*no memory left here") as caught:
        prepare(tmp_path / "run", "broken_beside", devices=2)
    assert "it resumes" in caught.value.fix
    assert not torch.distributed.is_initialized()
