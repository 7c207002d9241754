"""Top-1, the best of several epochs, and batch-norm statistics made anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.evaluation import (
    BestByValidation,
    Top1,
    batch_statistics,
    recalibrate_batch_norm,
    top1,
)

from .training.small import FABRIC, make_data, make_model


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


@pytest.mark.parametrize("training", [True, False])
def test_batch_statistics_are_each_batchs_own_and_leave_no_trace(training: bool) -> None:
    norm = nn.BatchNorm2d(1, momentum=0.37)
    model = nn.Sequential(norm, nn.Dropout(0.9)).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = 5.0 + torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    with batch_statistics(model):
        found = model(images).detach().numpy()
    wanted = (images - images.mean()) / images.std(unbiased=False)
    assert found == pytest.approx(wanted.numpy(), abs=1e-4)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert (norm.momentum, norm.training, model.training) == (0.37, training, training)


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


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("could not create a primitive"),
    ],
)
def test_memory_that_runs_out_is_told(error: RuntimeError) -> None:
    class Greedy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise error

    with pytest.raises(TrainingError, match="for top-1: not even the fewest images at once fit"):
        top1(Greedy(), make_data(), "val", FABRIC)
    greedy = nn.Sequential(nn.BatchNorm2d(1), Greedy())
    with pytest.raises(TrainingError, match="for the statistics of batch norms: not even"):
        recalibrate_batch_norm(greedy, make_data(), FABRIC, batch=16)


class Limited(nn.Module):
    """Holds so many images at once, and notes how many it was given."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.given: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.given.append(len(images))
        return images


def test_top1_takes_fewer_images_at_once_where_memory_is_short() -> None:
    limited, model, data = Limited(5), make_model(), make_data()
    found = top1(nn.Sequential(limited, model), data, "test", FABRIC)
    assert found == top1(model, data, "test", FABRIC)
    assert limited.given == [4, 4, 4]


def test_statistics_are_of_as_many_images_where_memory_is_short() -> None:
    limited, norm, data = Limited(8), nn.BatchNorm2d(1), make_data(train=64)
    recalibrate_batch_norm(nn.Sequential(norm, limited), data, FABRIC, batch=32, batches=2)
    assert limited.given == [8] * 8
    assert int(norm.num_batches_tracked) == 8
    whole = nn.BatchNorm2d(1)
    recalibrate_batch_norm(nn.Sequential(whole), data, FABRIC, batch=8, batches=8)
    torch.testing.assert_close(norm.running_mean, whole.running_mean)


@pytest.mark.parametrize(
    "text",
    [
        "mat1 and mat2 shapes cannot be multiplied",
        "could not create a primitive descriptor for the convolution forward propagation primitive",
    ],
)
def test_another_fault_is_not_taken_for_memory(text: str) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError(text)

    with pytest.raises(RuntimeError, match=text):
        top1(Broken(), make_data(), "val", FABRIC)
