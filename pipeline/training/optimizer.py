"""The optimiser's parameter groups and the course of the learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

WARMUP_SHARE = 0.1


def sgd(groups: list[dict[str, Any]]) -> torch.optim.SGD:
    """Nesterov momentum 0.9; each group names its own `lr` (peak) and `weight_decay`."""
    return torch.optim.SGD(
        [{**group, "peak": group["lr"]} for group in groups], lr=0.1, momentum=0.9, nesterov=True
    )


def decayed(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with weight decay on weights only, not on norms and biases."""
    weights = [p for p in module.parameters() if p.dim() > 1]
    others = [p for p in module.parameters() if p.dim() <= 1]
    return [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]


def cosine(share: float, warmup: float = WARMUP_SHARE) -> float:
    """Learning-rate factor after `share` of the steps: linear warm-up, then cosine to zero."""
    if share < warmup:
        return share / warmup
    return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))
