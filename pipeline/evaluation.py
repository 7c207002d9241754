"""Top-1 of a model, the best of several epochs, and batch-norm statistics made anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import safetensors
import torch
from lightning_fabric import Fabric
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.data.base import ImageData, Part, Split
from pipeline.files import write_atomically
from pipeline.memory import LEAST_PART, memory_told, with_memory

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Top1:
    """Share of images whose largest logit is their label's."""

    top1: float
    n: int


class BestByValidation:
    """Keeps the tensors of the epoch with the best validation top-1, on disk."""

    def __init__(self, module: nn.Module, path: Path, measure: Callable[[], Top1]) -> None:
        self.module, self.path, self.measure = module, path, measure

    def __call__(self) -> Top1:
        """Measure, and keep the module's tensors if no earlier epoch was better."""
        found = self.measure()
        if found.top1 >= self._best():
            tensors = {
                name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, value in self.module.state_dict().items()
            }
            write_atomically(self.path, save(tensors, {"val_top1": repr(found.top1)}))
        return found

    def restore(self) -> None:
        """Put the best tensors back; does nothing when there was no epoch."""
        if self.path.exists():
            self.module.load_state_dict(load(self.path.read_bytes()))

    def _best(self) -> float:
        if not self.path.exists():
            return -1.0
        with safetensors.safe_open(self.path, "pt") as file:
            return float(file.metadata()["val_top1"])


def top1(model: nn.Module, data: ImageData, split: Split, fabric: Fabric) -> Top1:
    """Top-1 of the model, in eval mode, over a whole split; TrainingError where memory is short."""
    was_training = model.training
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=fabric.device)
    part, at_once = Part(rank=fabric.global_rank, of=fabric.world_size), EVALUATION_BATCH
    with torch.no_grad(), fabric.autocast(), memory_told("for top-1"):
        for images, labels in data.on(fabric.device).batches_part(split, EVALUATION_BATCH, part):
            classes = partial(_classes, model, images.to(fabric.device))
            predicted, at_once = with_memory(classes, at_once)
            right += (predicted == labels.to(fabric.device)).sum()
    model.train(was_training)
    if fabric.world_size > 1:
        torch.distributed.all_reduce(right)
    count = data.size(split)
    return Top1(int(right) / count, count)


def _classes(model: nn.Module, images: Tensor, at_once: int) -> Tensor:
    """The class of the largest logit, (n,), of so many images at once."""
    return torch.cat([model(some).argmax(1) for some in torch.split(images, at_once)])


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """All batch norms of the model, of any dimension."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in eval mode but for batch norms, which take each batch's own
    statistics; running ones stay as they are.

    What batch norms remember of a network is wrong once a part of it is gone, and says more about
    its loss than the part does (adaptive batch norm: Li et al., "EagleEye", arXiv 2007.02491).
    """
    was_training, norms = model.training, batch_norms(model)
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
        model.train(was_training)


def recalibrate_batch_norm(
    model: nn.Module, data: ImageData, fabric: Fabric, *, batch: int, batches: int = 50
) -> None:
    """Replace running statistics by plain averages over training batches, weights untouched.

    Where memory is short over smaller batches, as many images in all; TrainingError where there is
    none for `LEAST_PART` of them.
    """
    norms = batch_norms(model)
    before = [norm.momentum for norm in norms]
    model.train()

    def averaged(at_once: int) -> None:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average, so that the order does not matter
        found = data.on(fabric.device).train_batches(at_once, seed=0, epoch=0)
        for images, _ in islice(found, batches * batch // at_once):
            model(images.to(fabric.device))

    with torch.no_grad(), fabric.autocast(), memory_told("for the statistics of batch norms"):
        with_memory(averaged, batch, LEAST_PART)
    model.eval()
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
