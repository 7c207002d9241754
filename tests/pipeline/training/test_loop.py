"""The training loop: repeatable, resumable to the bit, and it stops when it diverges."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.errors import DeployError, TrainingError
from pipeline.evaluation import Top1
from pipeline.training import Epoch, Recipe, Trainer, make_fabric, rate_factor, sgd

from .small import (
    CLASSES,
    FABRIC,
    Killed,
    Listener,
    dying_in,
    equal,
    folder_of,
    make_data,
    make_model,
    recipe,
    said,
    train,
)

# repeatable, resumable ------------------------------------------------------------------------


def test_same_seeds_give_the_same_weights_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(1)
    one, first = train(folder_of(tmp_path, "a"), recipe())
    torch.manual_seed(2)  # what ran before does not matter
    other, second = train(folder_of(tmp_path, "b"), recipe())
    assert equal(one, other)
    assert [e.loss for e in first.history] == [e.loss for e in second.history]
    different, _ = train(folder_of(tmp_path, "c"), recipe(seed=1))
    assert not equal(one, different)


def test_epochs_differ_in_their_random_numbers(tmp_path: Path) -> None:
    drawn: list[float] = []
    model = make_model()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        drawn.append(torch.rand(1).item())
        return nn.functional.cross_entropy(model(x), y)

    train(tmp_path, recipe(2), model=model, loss=loss)
    assert len(drawn) == 10
    assert not set(drawn[:5]) & set(drawn[5:])


@pytest.mark.parametrize("step", [1, 5, 7, 14])
def test_resumed_training_equals_one_that_was_not_stopped(tmp_path: Path, step: int) -> None:
    """Killed in the first step, at the end and at the start of an epoch, and in the last step.

    66 images in batches of 16: five steps an epoch.
    """
    whole, unstopped = train(folder_of(tmp_path, "whole"), recipe())
    folder = folder_of(tmp_path, "stopped")
    with pytest.raises(Killed):
        train(folder, recipe(), on_step=dying_in(step))
    resumed, trainer = train(folder, recipe(), model=make_model(seed=9 if step > 5 else 0))
    assert equal(whole, resumed)
    done = (step - 1) // 5
    assert said(trainer) == ([f"dense: resumed after epoch {done}"] if done else [])
    assert [(e.epoch, e.loss, e.val_top1) for e in trainer.history] == [
        (e.epoch, e.loss, e.val_top1) for e in unstopped.history
    ]


def test_finished_training_is_not_repeated(tmp_path: Path) -> None:
    whole, first = train(tmp_path, recipe())

    def never(_: Trainer) -> None:
        raise AssertionError("a step was made")

    again, second = train(tmp_path, recipe(), model=make_model(seed=9), on_step=never)
    assert equal(whole, again)
    assert second.history == first.history


def test_numbers_of_the_method_come_back(tmp_path: Path) -> None:
    def count(trainer: Trainer) -> None:
        trainer.state["multiplier"] = trainer.state.get("multiplier", 0.0) + 0.1
        if len(trainer.history) == 1 and not trainer.folder.joinpath("once").exists():
            (trainer.folder / "once").touch()
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path, recipe(2), on_step=count)
    _, trainer = train(tmp_path, recipe(2), on_step=count)
    # the steps of the epoch that was cut short count once
    assert trainer.state["multiplier"] == pytest.approx(1.0)
    assert [e.extra["multiplier"] for e in trainer.history] == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize("other", [recipe(4), recipe(seed=5), Recipe("dense", 3, 8, 0, "x")])
def test_checkpoint_of_another_recipe_is_ignored(tmp_path: Path, other: Recipe) -> None:
    train(tmp_path, recipe())
    fresh, _ = train(folder_of(tmp_path, "fresh"), other)
    found, trainer = train(tmp_path, other)
    assert said(trainer) == []
    assert equal(fresh, found)


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, None])
def test_damaged_checkpoint_is_told_and_ignored(tmp_path: Path, damage: bytes | None) -> None:
    whole, trainer = train(tmp_path, recipe())
    path = tmp_path / "dense.checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-10] if damage is None else damage)
    again, trainer = train(tmp_path, recipe())
    assert equal(whole, again)
    (line,) = said(trainer)
    assert line.startswith("dense: starts anew, its checkpoint is damaged: ")


def test_each_label_has_its_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, recipe(1))
    train(tmp_path, recipe(1, label="masked weights"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "dense.checkpoint.safetensors",
        "masked-weights.checkpoint.safetensors",
    ]


def test_learning_rate_follows_the_schedule_but_for_groups_that_do_not(tmp_path: Path) -> None:
    model = make_model()
    groups = [
        {"params": list(model.conv.parameters()), "lr": 0.2, "weight_decay": 0.0},
        {"params": list(model.linear.parameters()), "lr": 0.3, "weight_decay": 0.0}
        | {"course": "steady"},
    ]
    optimizer = sgd(groups)
    rates: list[tuple[float, float]] = []
    data = make_data()
    trainer = Trainer(FABRIC, data, tmp_path, Listener(), recipe(2))
    trainer.train(
        model,
        optimizer,
        lambda x, y: nn.functional.cross_entropy(model(x), y),
        evaluate=lambda: Top1(0.5, 2),
        on_step=lambda: rates.append(
            (optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"])
        ),
    )
    assert [first for first, _ in rates] == pytest.approx(
        [0.2 * rate_factor("falls", s / 10) for s in range(10)]
    )
    assert {second for _, second in rates} == {0.3}


# divergence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_no_number_stops_and_keeps_the_checkpoint(
    tmp_path: Path, value: float
) -> None:
    steps = iter(range(100))
    model = make_model()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        found = nn.functional.cross_entropy(model(x), y)
        return found * value if next(steps) == 7 else found

    with pytest.raises(TrainingError) as caught:
        train(tmp_path, recipe(), model=model, loss=loss)
    assert caught.value.message == (
        f"dense: the loss became {value} in step 3 of epoch 2; the checkpoint after epoch 1 is kept"
    )
    assert caught.value.fix == "lower --dense-lr"
    # the step was not made, and the epoch before is there to go on from
    assert all(bool(torch.isfinite(t).all()) for t in model.state_dict().values())
    _, trainer = train(tmp_path, recipe())
    assert said(trainer) == ["dense: resumed after epoch 1"]


def test_weights_lost_in_the_last_step_are_not_kept(tmp_path: Path) -> None:
    model = make_model()

    def spoil(trainer: Trainer) -> None:
        if len(trainer.history) == 1:
            with torch.no_grad():
                model.linear.bias[0] = math.nan

    evaluated: list[int] = []

    def evaluate() -> Top1:
        evaluated.append(1)
        return Top1(0.5, 2)

    data = make_data(train=16)  # one step an epoch: no later loss shows the harm
    with pytest.raises(TrainingError, match=r"linear\.bias became NaN or infinite"):
        train(tmp_path, recipe(2), model=model, data=data, on_step=spoil, evaluate=evaluate)
    assert len(evaluated) == 1
    fresh, trainer = train(tmp_path, recipe(2), data=data)
    assert said(trainer) == ["dense: resumed after epoch 1"]


def test_huge_learning_rate_diverges_in_words(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES))
    with pytest.raises(TrainingError):
        train(tmp_path, recipe(30), model=model, lr=1e30)


@pytest.mark.parametrize(
    ("device", "precision"), [("abacus", "32-true"), ("cpu", "3-mixed"), ("cpu", "16-mixed")]
)
def test_fabric_that_cannot_be_had(device: str, precision: str) -> None:
    with pytest.raises(DeployError, match="cannot train on") as caught:
        make_fabric(device, precision)
    assert "--train-precision 32-true" in caught.value.fix


def test_epoch_line_is_flat() -> None:
    line = Epoch(1, 2.0, 0.5, 3.0, {"live": 0.1}).to_json()
    assert line == {"live": 0.1, "epoch": 1, "loss": 2.0, "val_top1": 0.5, "seconds": 3.0}


@pytest.mark.parametrize(
    ("images", "devices", "does"), [(66, 2, True), (67, 4, False), (65, 4, True)]
)
def test_every_device_needs_an_image_of_the_last_batch(
    tmp_path: Path, images: int, devices: int, does: bool
) -> None:
    fabric = SimpleNamespace(device=torch.device("cpu"), world_size=devices)
    trainer = Trainer(
        cast("Fabric", fabric), make_data(images), tmp_path, Listener(), recipe(epochs=1)
    )
    with nullcontext() if does else pytest.raises(TrainingError, match="too few for 4 devices"):
        trainer._require_images_for_all()
