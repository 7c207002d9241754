from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.layout import channels_last, is_faster, refusal


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


def test_unwanted_nothing_changes() -> None:
    conv = nn.Conv2d(4, 8, 3)
    with channels_last(conv, wanted=False):
        assert conv.weight.is_contiguous()


class Joined(nn.Module):
    """Its maps joined by a view, as many networks are written."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pool, self.linear = nn.AdaptiveAvgPool2d(size), nn.Linear(8 * size * size, 4)

    def forward(self, images: Tensor) -> Tensor:
        out = self.pool(self.norm(self.conv(images)))
        logits: Tensor = self.linear(out.view(len(out), -1))
        return logits


@pytest.mark.parametrize(("size", "takes"), [(1, True), (2, False)])
@pytest.mark.parametrize("training", [True, False])
def test_a_view_of_maps_needs_channels_first(size: int, takes: bool, training: bool) -> None:
    model = Joined(size).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = refusal(model, torch.randn(2, 3, 8, 8))
    assert ("Use .reshape(...) instead" in found) != takes
    assert bool(found) != takes
    assert model.training == training
    assert model.conv.weight.is_contiguous()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_another_failure_is_told() -> None:
    with pytest.raises(RuntimeError, match="expected input"):
        refusal(Joined(2), torch.randn(2, 5, 8, 8))


class Misled(nn.Module):
    """Computes something else where its weights lie channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.conv(images).mean((2, 3))
        return logits if self.conv.weight.is_contiguous() else 1.1 * logits


def test_other_logits_are_a_refusal() -> None:
    assert "its logits are off by" in refusal(Misled(), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("device", "precision", "faster"),
    [
        ("cpu", "32-true", True),
        ("cuda", "32-true", False),
        ("cuda", "16-mixed", True),
        ("cuda", "bf16-mixed", True),
        ("mps", "16-mixed", False),
    ],
)
def test_where_it_is_known_to_be_faster(device: str, precision: str, faster: bool) -> None:
    assert is_faster(torch.device(device), precision) == faster


def test_logits_that_are_no_numbers_are_no_refusal() -> None:
    """Training says so, in words that name what to do."""
    model = Joined(1)
    nn.init.constant_(model.linear.weight, float("nan"))
    assert not refusal(model, torch.randn(2, 3, 8, 8))
