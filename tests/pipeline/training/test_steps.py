"""Steps in parts: the same gradients, and fewer images at once where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.training import Trainer
from pipeline.training.steps import Steps

from .small import (
    CLASSES,
    FABRIC,
    Killed,
    equal,
    folder_of,
    make_data,
    make_model,
    recipe,
    said,
    train,
)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES))


def gradient(images: int, micro_batch: int | None) -> tuple[Tensor, list[int], float]:
    """The weight's gradient of one step, how many images came at once, and the loss."""
    model, seen = linear(), []

    def loss(x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return nn.functional.cross_entropy(model(x), y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    steps = Steps(FABRIC, model, optimizer, loss, recipe(micro_batch=micro_batch))
    x, y = make_data().images("train", images)
    value = steps(x, y, seed=0)
    weight = model[1].weight.grad
    assert weight is not None
    return weight, seen, value.item()


@pytest.mark.parametrize(
    ("images", "micro_batch", "parts"),
    [
        (16, None, [16]),
        (16, 4, [4, 4, 4, 4]),
        (16, 6, [6, 5, 5]),
        (5, 4, [3, 2]),
        (5, 2, [3, 2]),  # rather one too many than one alone
        (3, 2, [3]),
        (2, 2, [2]),
    ],
)
def test_parts_add_up_to_the_gradient_of_the_whole(
    images: int, micro_batch: int | None, parts: list[int]
) -> None:
    whole, _, loss = gradient(images, None)
    found, seen, sum_of_parts = gradient(images, micro_batch)
    assert seen == parts
    assert torch.allclose(whole, found, atol=1e-7)
    assert sum_of_parts == pytest.approx(loss, rel=1e-6)


GPU_IS_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
CPU_IS_FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")


def scarce(
    model: nn.Module, most: int, error: RuntimeError = GPU_IS_FULL
) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss on a device whose memory holds `most` images; it fails after the forward pass."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(model(x), y)
        if len(x) > most:
            raise error
        return value

    return loss


@pytest.mark.parametrize("error", [GPU_IS_FULL, CPU_IS_FULL])
def test_out_of_memory_goes_on_with_fewer_images_at_once(
    tmp_path: Path, error: RuntimeError
) -> None:
    model = make_model()
    found, trainer = train(
        folder_of(tmp_path, "scarce"), recipe(2), model=model, loss=scarce(model, 5, error)
    )
    expected, _ = train(folder_of(tmp_path, "small"), recipe(2, micro_batch=4))
    assert equal(expected, found)  # batch norm and dropout saw nothing of what failed
    assert said(trainer) == [
        "dense: 16 images at once do not fit into the device's memory; going on with 8, "
        "gradients added up",
        "dense: 8 images at once do not fit into the device's memory; going on with 4, "
        "gradients added up",
    ]
    assert [epoch.to_json()["micro_batch"] for epoch in trainer.history] == [4, 4]


def test_a_resumed_training_remembers_what_fits(tmp_path: Path) -> None:
    model = make_model()
    plan = recipe(2)

    def stop(trainer: Trainer) -> None:
        if len(trainer.history) == 1:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path, plan, model=model, loss=scarce(model, 5), on_step=stop)
    again = make_model()
    _, trainer = train(tmp_path, plan, model=again, loss=scarce(again, 5))
    assert said(trainer) == ["dense: resumed after epoch 1"]
    assert trainer.history[1].extra["micro_batch"] == 4


def test_out_of_memory_with_two_images_is_an_error(tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(TrainingError, match="dense: 2 images at once do not fit") as caught:
        train(tmp_path, recipe(), model=model, loss=scarce(model, 1))
    assert "--device" in caught.value.fix
