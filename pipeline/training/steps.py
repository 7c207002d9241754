"""One optimiser step: in parts where the device cannot hold it at once, over all processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.memory import LEAST_PART, give_memory_back, is_out_of_memory
from pipeline.training.processes import sum_gradients, total
from pipeline.training.recipe import Recipe

Loss = Callable[[Tensor, Tensor], Tensor]
"""(images (n, C, H, W), labels (n,) or shares (n, classes)) -> scalar, a mean over the images."""


class Steps:
    """Makes optimiser steps; the number of images at once shrinks when memory runs out."""

    def __init__(
        self,
        fabric: Fabric,
        trained: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        recipe: Recipe,
    ) -> None:
        # loss scaling of 16-mixed is done in the wrapper's step
        self.optimizer = cast("torch.optim.Optimizer", fabric.setup_optimizers(optimizer))
        self.micro_batch = recipe.regime.micro_batch or recipe.batch
        self.tell: Callable[[str], None] = lambda text: None
        self._fabric, self._trained, self._loss, self._recipe = fabric, trained, loss, recipe

    @property
    def shrunk(self) -> bool:
        """Whether memory has run out."""
        return self.micro_batch < (self._recipe.regime.micro_batch or self._recipe.batch)

    def __call__(self, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """Gradients of the mean loss, then one step; the loss on this process's share of images.

        Losses of all processes add up to the mean over the whole step. On the CPU a loss that is
        no number leaves the weights as they were.
        """
        buffers = [buffer.clone() for buffer in self._trained.buffers()]
        while True:
            torch.manual_seed(seed)
            try:
                value = self._gradients(images, labels)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(len(images), error)
            # outside of the handler, whose traceback holds on to the activations
            give_memory_back()
            with torch.no_grad():
                for buffer, before in zip(self._trained.buffers(), buffers, strict=True):
                    buffer.copy_(before)
        if value.device.type != "cpu" or math.isfinite(float(value)):
            self.optimizer.step()
        return value

    def _gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        size = torch.tensor(float(len(images)), device=images.device)
        size = total(size, self._fabric)
        value = torch.zeros((), device=images.device)
        for part, wanted in self._parts(images, labels):
            with self._fabric.autocast():
                share = self._loss(part, wanted) * (len(part) / size)
            self._fabric.backward(share)
            value += share.detach()
        if self._fabric.world_size > 1:
            sum_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        return value

    def _parts(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Parts of nearly equal size, none of a single image."""
        n = len(images)
        count = max(1, min(math.ceil(n / self.micro_batch), n // LEAST_PART))
        return zip(images.tensor_split(count), labels.tensor_split(count), strict=True)

    def _shrink(self, images: int, error: RuntimeError) -> None:
        """Halve the images at once; TrainingError where that cannot be done."""
        tried = min(self.micro_batch, images)
        what = f"{self._recipe.label}: {tried} images at once do not fit into the device's memory"
        if tried <= LEAST_PART:
            raise TrainingError(what, fix="use smaller images, or another --device") from error
        fewer = max(LEAST_PART, tried // 2)
        if self._fabric.world_size > 1:  # the other processes are in the middle of their step
            raise TrainingError(what, fix=f"use --micro-batch {fewer}") from error
        self.micro_batch = fewer
        self.tell(f"{what}; going on with {self.micro_batch}, gradients added up")
