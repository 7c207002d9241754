"""A small trained network and real images of digits, for what random weights cannot show.

`python -m tests.targets.digits_net` trains it anew and writes the weights beside this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from pipeline.export import export_onnx

WEIGHTS = Path(__file__).with_name("digits_net.safetensors")
TRAIN, TEST = 1500, 297  # images; nothing is selected on the last ones


class DigitsNet(nn.Module):
    """Images (n, 1, 8, 8) to logits (n, 10): three convolutions, one of them residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, 2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.linear = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(images)))
        x = relu(self.bn2(self.conv2(x)))
        x = relu(self.bn3(self.conv3(x)) + x)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


@dataclass(frozen=True)
class Digits:
    """What a target is held to: the graph, images it may calibrate on, and torch's answer."""

    onnx: bytes
    train: NDArray[np.float32]  # (128, 1, 8, 8)
    images: NDArray[np.float32]  # (297, 1, 8, 8), unseen in training
    logits: NDArray[np.float32]  # (297, 10), of torch in fp32
    labels: NDArray[np.int64]  # (297,)


@cache
def digits(batch: int) -> Digits:
    """The trained network exported with this batch."""
    images, labels = _data()
    net = DigitsNet().eval()
    net.load_state_dict(load_file(WEIGHTS))
    with torch.no_grad():
        logits = net(images[-TEST:])
    return Digits(
        export_onnx(net, images[:batch]),
        images[:128].numpy(),
        images[-TEST:].numpy(),
        logits.numpy(),
        labels[-TEST:].numpy(),
    )


def _data() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8), mean 0 and standard deviation 1, and labels (1797,)."""
    found = load_digits()
    images = torch.tensor(found.images[:, None], dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.tensor(found.target)


def main() -> None:
    torch.manual_seed(0)
    images, labels = _data()
    net = DigitsNet()
    epochs, batch = 20, 50
    steps = epochs * TRAIN // batch
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(epochs):
        for rows in torch.randperm(TRAIN).split(batch):  # type: ignore[no-untyped-call]
            optimiser.zero_grad()
            cross_entropy(net(images[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    save_file(net.state_dict(), WEIGHTS)
    net.eval()
    with torch.no_grad():
        right = net(images[-TEST:]).argmax(1) == labels[-TEST:]
    print(f"test top-1 {right.float().mean():.4f}")  # noqa: T201


if __name__ == "__main__":
    main()
