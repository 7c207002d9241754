"""How a model's weights lie in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

ALIKE = 0.01  # of the largest logit: far above rounding, even that of TF32


@contextmanager
def channels_last(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Inside, if wanted, weights of convolutions lie channels last; afterwards contiguous.

    What a convolution gives then lies so too, whatever it is given.
    """
    if not wanted:
        yield
        return
    model.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)


def is_faster(device: torch.device, precision: str) -> bool:
    """Whether channels last is known to be the faster layout for training.

    On a CPU it is (benchmarks/results/training.json). On GPUs PyTorch advises it for 16 bits; in 32
    bits grouped convolutions can be many times slower (pytorch/pytorch#34977).
    """
    return device.type == "cpu" or (device.type == "cuda" and "16" in precision)


def refusal(model: nn.Module, images: Tensor) -> str:
    """Why the model cannot be computed channels last, or "", on images (n, C, H, W) of its device.

    One that flattens with `x.view(n, -1)` cannot: a view joins only what lies side by side. Some
    versions of torch gave wrong numbers for some convolutions (pytorch/pytorch#99519).
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _refusal(model, images)
    finally:
        model.train(was_training)


def _refusal(model: nn.Module, images: Tensor) -> str:
    expected = model(images)
    try:
        with channels_last(model):
            found = model(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError as error:
        return str(error)
    largest, off = float(expected.abs().max()), float((found - expected).abs().max())
    if not math.isfinite(largest) or off <= ALIKE * largest:
        return ""
    return f"its logits are off by {off:g}"
