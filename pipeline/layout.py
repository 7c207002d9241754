"""How a model's weights lie in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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


def refusal(model: nn.Module, images: Tensor) -> str:
    """Why the model cannot be computed channels last, or "", on images (n, C, H, W) of its device.

    One that flattens with `x.view(n, -1)` cannot: a view joins only what lies side by side.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _refusal(model, images)
    finally:
        model.train(was_training)


def _refusal(model: nn.Module, images: Tensor) -> str:
    try:
        with channels_last(model):
            model(images)
    except RuntimeError as error:
        model(images)  # fails, too, where the layout is not the reason
        return str(error)
    return ""
