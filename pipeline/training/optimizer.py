"""The optimiser's parameter groups and the course of the learning rate."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

WARMUP_SHARE = 0.1

# of a rate over a training: `falls` to zero; `holds`, for another training that goes on with it;
# or is `steady` from the first step
Course = Literal["falls", "holds", "steady"]


def sgd(groups: list[dict[str, Any]]) -> torch.optim.SGD:
    """Nesterov momentum 0.9; each group names its own `lr` (peak) and `weight_decay`.

    Its rate takes the `course` that it names, or falls.
    """
    return torch.optim.SGD(
        [{"course": "falls", **group, "peak": group["lr"]} for group in groups],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )


def decayed(
    module: nn.Module, lr: float, weight_decay: float, course: Course = "falls"
) -> list[dict[str, Any]]:
    """Parameter groups with weight decay on weights only, not on norms and biases."""
    weights = [p for p in module.parameters() if p.dim() > 1]
    others = [p for p in module.parameters() if p.dim() <= 1]
    return [
        {"params": weights, "lr": lr, "weight_decay": weight_decay, "course": course},
        {"params": others, "lr": lr, "weight_decay": 0.0, "course": course},
    ]


def set_rates(optimizer: torch.optim.Optimizer, share: float, warmup: float = WARMUP_SHARE) -> None:
    """Of every group that `sgd` made, what its course has after `share` of the steps."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate_factor(group["course"], share, warmup)


def rate_factor(course: Course, share: float, warmup: float = WARMUP_SHARE) -> float:
    """What a peak rate is multiplied by after `share` of the steps.

    `falls`: linear warm-up, then cosine to zero; `holds`: the warm-up alone; `steady`: 1. One
    training that holds and one that falls are a schedule (warm-up, stable, decay).
    """
    if course == "steady":
        return 1.0
    if share < warmup:
        return share / warmup
    if course == "holds":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))
