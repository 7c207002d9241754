"""VGG-16 with batch norm for images of 32 pixels, as the pruning literature uses it on CIFAR.

Simonyan and Zisserman 2015, configuration D, with one linear layer for the three (Li et al. 2017,
"Pruning Filters for Efficient ConvNets", section 4.1).
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers


class CifarVGG(nn.Module):
    """Thirteen convolutions and a linear layer; state-dict names `features.{i}, linear`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = make_layers(cfgs["D"], batch_norm=True)
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 32, 32) -> logits (n, classes)."""
        out: Tensor = self.linear(self.features(x).flatten(1))
        return out
