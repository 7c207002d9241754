"""How a model's weights lie in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Inside, weights of convolutions lie channels last; afterwards contiguous."""
    model.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)
