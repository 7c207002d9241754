"""What gated training minimises beside the cost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.training import distillation

TaskLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (images, logits, labels) -> scalar


def plain_task(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy."""
    return nn.functional.cross_entropy(logits, labels)


def distilled_task(teacher: nn.Module, weight: float) -> TaskLoss:
    """(1 - weight) * cross entropy + weight * distillation from `teacher`, which is frozen."""

    def task(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher(images)
        plain = nn.functional.cross_entropy(logits, labels)
        return (1 - weight) * plain + weight * distillation(logits, target)

    return task
