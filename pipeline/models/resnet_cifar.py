"""CIFAR ResNets of He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2.

State-dict names: `conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear`; option B adds
`layer{2,3}.0.shortcut.{0,1}`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Literal["A", "B"]

STAGE_WIDTHS = (16, 32, 64)


class PaddedSubsample(nn.Module):
    """Option A: every second pixel, zero channels around; no parameters."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.front = (width - in_width) // 2
        self.behind = width - in_width - self.front

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, front + c + behind, h/2, w/2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.front, self.behind))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; ReLU after the add."""

    def __init__(self, in_width: int, width: int, *, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_width, width, stride=stride, kind=shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_width, h, w) -> (n, width, h/stride, w/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


def _shortcut(in_width: int, width: int, *, stride: int, kind: Shortcut) -> nn.Module:
    if stride == 1 and in_width == width:
        return nn.Identity()
    if kind == "A":
        return PaddedSubsample(in_width, width)
    projection = nn.Conv2d(in_width, width, 1, stride=stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(width))


class CifarResNet(nn.Module):
    """A ResNet of `6 * blocks + 2` layers for small images; `blocks` residual blocks a stage."""

    def __init__(self, blocks: int, classes: int, *, shortcut: Shortcut) -> None:
        super().__init__()
        first, second, third = STAGE_WIDTHS
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, blocks=blocks, stride=1, shortcut=shortcut)
        self.layer2 = _stage(first, second, blocks=blocks, stride=2, shortcut=shortcut)
        self.layer3 = _stage(second, third, blocks=blocks, stride=2, shortcut=shortcut)
        self.linear = nn.Linear(third, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (n, 3, h, w) -> logits (n, classes)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        pooled = torch.flatten(F.adaptive_avg_pool2d(out, 1), 1)
        logits: Tensor = self.linear(pooled)
        return logits


def _stage(
    in_width: int, width: int, *, blocks: int, stride: int, shortcut: Shortcut
) -> nn.Sequential:
    first = BasicBlock(in_width, width, stride=stride, shortcut=shortcut)
    rest = [BasicBlock(width, width, stride=1, shortcut=shortcut) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
