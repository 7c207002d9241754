"""A network and data that train in a second, and a trainer around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.base import DataCard
from pipeline.data.memory import InMemoryImages
from pipeline.evaluation import top1
from pipeline.training import Recipe, Regime, Trainer, Upkeep, decayed, make_fabric, sgd

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


def recipe(epochs: int = 3, *, seed: int = 0, label: str = "dense", **regime: Any) -> Recipe:
    return Recipe(label, epochs, 16, seed, "lower --dense-lr", Regime(**regime))


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
    upkeep = changes.get("upkeep", Upkeep())
    trainer = Trainer(FABRIC, data, folder, Listener(), plan, upkeep)
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


def dying_in(step: int) -> Callable[[Trainer], None]:
    """For `on_step`: dies in that step, counted from one."""
    steps = iter(range(1, step + 1))

    def stop(_: Trainer) -> None:
        if next(steps) == step:
            raise Killed

    return stop
