from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.layout import channels_last


def _fail_inside(conv: nn.Conv2d) -> None:
    with channels_last(conv):
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert not conv.weight.is_contiguous()
        raise RuntimeError("inside")


def test_weights_lie_channels_last_inside_and_as_before_afterwards() -> None:
    conv = nn.Conv2d(4, 8, 3)
    before = conv.weight.detach().clone()
    with pytest.raises(RuntimeError, match="inside"):
        _fail_inside(conv)
    assert conv.weight.is_contiguous()
    assert torch.equal(conv.weight, before)
