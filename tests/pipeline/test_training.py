"""The training loop: repeatable, resumable to the bit, and it stops when it diverges."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.data.base import DataCard
from pipeline.data.memory import InMemoryImages
from pipeline.errors import DeployError, TrainingError
from pipeline.evaluation import BestByValidation, Top1, recalibrate_batch_norm, top1
from pipeline.training import (
    Epoch,
    Recipe,
    Trainer,
    cosine,
    decayed,
    distillation,
    make_fabric,
    sgd,
)

FABRIC = make_fabric("cpu", "32-true")
CLASSES = 4


class Listener:
    def __init__(self) -> None:
        self.said: list[str] = []

    def progress(self, label: str, done: int, total: int, note: str = "") -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)  # so that the order of random numbers matters
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        out = torch.relu(self.norm(self.conv(images))).mean((2, 3))
        logits: Tensor = self.linear(self.drop(out))
        return logits


def make_data(train: int = 66, *, seed: int = 0) -> InMemoryImages:
    generator = torch.Generator().manual_seed(seed)

    def split(n: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(n) % CLASSES
        images = torch.randn(n, 1, 6, 6, generator=generator) + labels.view(-1, 1, 1, 1)
        return images, labels

    card = DataCard(
        name="lumps",
        classes=tuple("abcd"),
        image_shape=(1, 6, 6),
        mean=(0.0,),
        std=(1.0,),
        counts={},
        skipped=(),
        digest="",
        augment=("crop:1", "flip"),
    )
    return InMemoryImages(card, {"train": split(train), "val": split(12), "test": split(12)})


def make_model(seed: int = 0) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small()


def recipe(epochs: int = 3, *, seed: int = 0, label: str = "dense") -> Recipe:
    return Recipe(label, epochs, 16, seed, "lower --dense-lr")


class Killed(BaseException):
    pass


def train(
    folder: Path,
    plan: Recipe,
    *,
    model: nn.Module | None = None,
    lr: float = 0.1,
    on_step: Callable[[Trainer], None] = lambda _: None,
    **changes: Any,
) -> tuple[nn.Module, Trainer]:
    model = make_model() if model is None else model
    data = changes.get("data", make_data())
    trainer = Trainer(FABRIC, data, folder, Listener(), plan)
    trainer.train(
        model,
        sgd(decayed(model, lr, 5e-4)),
        changes.get("loss", lambda x, y: nn.functional.cross_entropy(model(x), y)),
        evaluate=changes.get("evaluate", lambda: top1(model, data, "val", FABRIC)),
        on_step=lambda: on_step(trainer),
    )
    return model, trainer


def said(trainer: Trainer) -> list[str]:
    assert isinstance(trainer.reporter, Listener)
    return trainer.reporter.said


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def folder_of(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


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
    steps = iter(range(1, 100))

    def stop(_: Trainer) -> None:
        if next(steps) == step:
            raise Killed

    with pytest.raises(Killed):
        train(folder, recipe(), on_step=stop)
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
        | {"scheduled": False},
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
    assert [first for first, _ in rates] == pytest.approx([0.2 * cosine(s / 10) for s in range(10)])
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


# best by validation ---------------------------------------------------------------------------


def test_best_epoch_comes_back(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    shares = iter([0.5, 0.75, 0.75, 0.25])
    best = BestByValidation(model, tmp_path / "best", lambda: Top1(next(shares), 4))
    for epoch in range(4):
        nn.init.constant_(model.weight, epoch)
        best()
    best.restore()
    assert model.weight.item() == 2  # of equals the later: it is trained longer


def test_best_epoch_survives_a_kill(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 1.0)
    BestByValidation(model, tmp_path / "best", lambda: Top1(0.9, 4))()
    nn.init.constant_(model.weight, 2.0)
    again = BestByValidation(model, tmp_path / "best", lambda: Top1(0.8, 4))
    again()
    again.restore()
    assert model.weight.item() == 1.0


def test_without_an_epoch_nothing_is_restored(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    before = model.weight.item()
    BestByValidation(model, tmp_path / "best", lambda: Top1(1.0, 1)).restore()
    assert model.weight.item() == before


# the parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "factor"),
    [
        (0.0, 0.0),
        (0.05, 0.5),
        (0.1, 1.0),
        (0.325, 0.5 * (1 + math.sqrt(0.5))),
        (0.55, 0.5),
        (1.0, 0.0),
    ],
)
def test_cosine_after_linear_warm_up(share: float, factor: float) -> None:
    assert cosine(share) == pytest.approx(factor, abs=1e-12)


def test_weight_decay_is_for_weights_only() -> None:
    model = make_model()
    weights, others = decayed(model, 0.1, 5e-4)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in weights["params"]} == {"conv.weight", "linear.weight"}
    assert {names[id(p)] for p in others["params"]} == {
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "linear.bias",
    }
    assert (weights["lr"], weights["weight_decay"]) == (0.1, 5e-4)
    assert (others["lr"], others["weight_decay"]) == (0.1, 0.0)


def test_sgd_is_nesterov_momentum_with_the_peak_remembered() -> None:
    optimizer = sgd(decayed(make_model(), 0.25, 0.0))
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"]) == (0.9, True)
        assert (group["lr"], group["peak"]) == (0.25, 0.25)


def test_distillation_is_the_divergence_of_softened_logits() -> None:
    generator = np.random.default_rng(0)
    student, teacher = generator.standard_normal((2, 5, 3))

    def softened(logits: Any) -> Any:
        scaled = np.exp(logits / 3.0)
        return scaled / scaled.sum(1, keepdims=True)

    p, q = softened(teacher), softened(student)
    expected = 9.0 * (p * np.log(p / q)).sum() / 5
    found = distillation(torch.tensor(student), torch.tensor(teacher), temperature=3.0)
    assert float(found) == pytest.approx(expected)
    same = torch.tensor(teacher)
    assert float(distillation(same, same)) == pytest.approx(0.0, abs=1e-12)


def test_batch_norm_gets_plain_averages_and_its_momentum_back() -> None:
    data = make_data(train=64)
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.37), nn.BatchNorm2d(1, momentum=None))
    model[0].running_mean.fill_(99.0)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    recalibrate_batch_norm(model, data, FABRIC, batch=16)
    batches = [images for images, _ in data.train_batches(16, seed=0, epoch=0)]
    assert len(batches) == 4
    means = torch.stack([images.mean() for images in batches])
    variances = torch.stack([images.var(unbiased=True) for images in batches])
    assert model[0].running_mean.item() == pytest.approx(means.mean().item(), rel=1e-5)
    assert model[0].running_var.item() == pytest.approx(variances.mean().item(), rel=1e-5)
    assert [norm.momentum for norm in model] == [0.37, None]
    assert not model.training
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_batch_norm_reads_no_more_batches_than_asked() -> None:
    data = make_data(train=64)
    model = nn.Sequential(nn.BatchNorm2d(1))
    recalibrate_batch_norm(model, data, FABRIC, batch=16, batches=2)
    assert int(model[0].num_batches_tracked) == 2


@pytest.mark.parametrize("training", [True, False])
def test_top1_leaves_the_mode_as_it_was(training: bool) -> None:
    model = make_model().train(training)
    data = make_data()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = top1(model, data, "test", FABRIC)
    assert model.training is training
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    images, labels = data.images("test", 12)
    with torch.no_grad():
        right = (model.eval()(images).argmax(1) == labels).float().mean().item()
    assert (found.top1, found.n) == (pytest.approx(right), 12)


def test_epoch_line_is_flat() -> None:
    line = Epoch(1, 2.0, 0.5, 3.0, {"live": 0.1}).to_json()
    assert line == {"live": 0.1, "epoch": 1, "loss": 2.0, "val_top1": 0.5, "seconds": 3.0}
