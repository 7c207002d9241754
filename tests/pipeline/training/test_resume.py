"""Killed inside an epoch: what comes after equals a training that was not stopped, to the bit."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from pipeline.data.base import Part
from pipeline.data.memory import InMemoryImages
from pipeline.training import Trainer, Upkeep, decayed, sgd
from pipeline.training.session import Session
from pipeline.training.steps import Steps

from .gated import learned_plan
from .small import (
    FABRIC,
    Killed,
    dying_in,
    equal,
    folder_of,
    make_data,
    make_model,
    recipe,
    said,
    train,
)

OFTEN, NEVER = Upkeep(minutes=0), Upkeep(minutes=60)

REGIMES: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {"ema": 0.9},
    "mixed": {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1},
    "parts": {"micro_batch": 5},
    "channels last": {"channels_last": True},
}


@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES)
@pytest.mark.parametrize(
    ("step", "told"),
    [
        (1, []),
        (3, ["dense: resumed in epoch 1, step 2"]),
        (9, ["dense: resumed after epoch 1, step 3"]),
        (15, ["dense: resumed after epoch 2, step 4"]),
    ],
)
def test_resumed_inside_an_epoch(
    tmp_path: Path, regime: dict[str, Any], step: int, told: list[str]
) -> None:
    """66 images in batches of 16: five steps an epoch. Killed in a step, before it is saved."""
    plan = recipe(**regime)
    whole, unstopped = train(folder_of(tmp_path, "whole"), plan, upkeep=NEVER)
    folder = folder_of(tmp_path, "stopped")
    with pytest.raises(Killed):
        train(folder, plan, on_step=dying_in(step), upkeep=OFTEN)
    model = make_model(seed=9 if told else 0)
    resumed, trainer = train(folder, plan, model=model, upkeep=OFTEN)
    assert said(trainer) == told
    assert equal(whole, resumed)
    assert [(e.epoch, e.loss, e.val_top1) for e in trainer.history] == [
        (e.epoch, e.loss, e.val_top1) for e in unstopped.history
    ]


def test_between_checkpoints_nothing_is_written(tmp_path: Path) -> None:
    written: list[bool] = []

    def look(trainer: Trainer) -> None:
        written.append((tmp_path / "dense.checkpoint.safetensors").exists())

    train(tmp_path, recipe(2), on_step=look, upkeep=NEVER)
    assert written == [False] * 5 + [True] * 5


def test_channels_last_inside_plain_outside(tmp_path: Path) -> None:
    layouts: list[bool] = []
    model = make_model()

    def look(_: Trainer) -> None:
        weight = model.conv.weight
        layouts.append(weight.is_contiguous(memory_format=torch.channels_last))

    # a conv with several input channels, as one channel lies both ways
    model.conv = torch.nn.Conv2d(1, 8, 3)
    train(tmp_path, recipe(1, channels_last=True), model=model, on_step=look)
    assert all(layouts)
    assert len(layouts) == 5
    assert all(value.is_contiguous() for value in model.state_dict().values())


VICTIM = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import small
from pipeline.training import Upkeep
steps = iter(range(1, 100))
def stop(trainer):
    if next(steps) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
small.train(Path(sys.argv[2]), small.recipe(ema=0.9), on_step=stop, upkeep=Upkeep(minutes=0))
"""


def test_killed_by_a_signal(tmp_path: Path) -> None:
    whole, _ = train(folder_of(tmp_path, "whole"), recipe(ema=0.9))
    folder = folder_of(tmp_path, "killed")
    command = [sys.executable, "-c", VICTIM, str(Path(__file__).parent), str(folder)]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    resumed, trainer = train(folder, recipe(ema=0.9), model=make_model(seed=9))
    assert said(trainer) == ["dense: resumed after epoch 1, step 2"]
    assert equal(whole, resumed)


class Dying(InMemoryImages):
    """Gives so many training batches, then kills."""

    left: int

    def train_part(
        self, batch_size: int, *, seed: int, epoch: int, part: Part
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in super().train_part(batch_size, seed=seed, epoch=epoch, part=part):
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield batch


@pytest.mark.parametrize("batches", [3, 13])
def test_gates_resumed_inside_an_epoch_learn_the_same_plan(tmp_path: Path, batches: int) -> None:
    data = make_data()
    whole = learned_plan(FABRIC, data, folder_of(tmp_path, "whole"))
    assert min(whole["open"]) < 16
    dying = Dying(data.card, data._splits)
    dying.left = batches
    folder = folder_of(tmp_path, "stopped")
    with pytest.raises(Killed):
        learned_plan(FABRIC, dying, folder, upkeep=OFTEN)
    assert learned_plan(FABRIC, data, folder, upkeep=OFTEN) == whole


def test_the_scale_of_half_precision_comes_back() -> None:
    """16-mixed needs a GPU; its scaler is asked for its state in the same way anywhere."""
    before, after = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (512.0, 2.0))
    fabrics = [SimpleNamespace(strategy=SimpleNamespace(precision=s)) for s in (before, after)]
    model = make_model()
    optimizer = sgd(decayed(model, 0.1, 0.0))
    steps = Steps(FABRIC, model, optimizer, lambda x, y: x.sum(), recipe())
    session = Session(model, optimizer, steps, None, lambda: None)
    loss = before.scale(model.linear.bias.sum())
    assert isinstance(loss, Tensor)
    loss.backward()
    before.step(optimizer)
    before.update()
    session.load(session.tensors(cast("Fabric", fabrics[0])), cast("Fabric", fabrics[1]))
    assert after.state_dict() == before.state_dict()
    assert before.state_dict()["scale"] == 512.0
    assert isinstance(after.state_dict()["growth_interval"], int)
