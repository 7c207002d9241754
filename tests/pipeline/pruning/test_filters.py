from __future__ import annotations

import pytest
import torch
from torch import nn

from calibration.widths import ChannelGroup, Slice
from pipeline.pruning.filters import (
    filters_beside,
    filters_of,
    own_rows,
    producers,
    readers,
    squares,
)

from .networks import Net, Network, conv, named


def tensors(pieces: tuple[Slice, ...]) -> list[str]:
    return [piece.tensor for piece in pieces]


def test_a_depthwise_convolution_neither_makes_channels_nor_reads_them() -> None:
    network: Network = named("torchvision:mobilenet_v2")
    group = network.groups["features.2.conv.0.0"]
    assert tensors(producers(network.model, group)) == ["features.2.conv.0.0.weight"]
    assert tensors(readers(network.model, group)) == ["features.2.conv.2.weight"]
    assert "features.2.conv.1.0.weight" in tensors(group.slices)


def test_every_block_of_a_stage_makes_and_reads_its_stream() -> None:
    network = named("wgates:resnet20")
    group = network.groups["conv1"]
    assert len(producers(network.model, group)) == 4
    assert tensors(readers(network.model, group))[:3] == [
        f"layer1.{index}.conv1.weight" for index in range(3)
    ]


def test_a_transposed_convolution_makes_what_its_second_dimension_has() -> None:
    model = Net(lambda s, x: s.b(s.a(x)), a=conv(3, 4), b=nn.ConvTranspose2d(4, 6, 2))
    rows = [tuple((channel,) for channel in range(count)) for count in (4, 6)]
    inner = ChannelGroup("a", 4, (Slice("a.weight", 0, rows[0]), Slice("b.weight", 0, rows[0])))
    outer = ChannelGroup("b", 6, (Slice("b.weight", 1, rows[1]),))
    assert (tensors(producers(model, inner)), tensors(readers(model, inner))) == (
        ["a.weight"],
        ["b.weight"],
    )
    assert (tensors(producers(model, outer)), readers(model, outer)) == (["b.weight"], ())
    with torch.no_grad():
        torch.testing.assert_close(
            squares(model, inner.slices[1]), model.b.weight.square().sum((1, 2, 3))
        )


def test_a_channel_that_a_flatten_spread_owns_all_its_columns() -> None:
    model = Net(lambda s, x: s.head(x.flatten(1)), head=nn.Linear(8, 2))
    piece = Slice("head.weight", 1, ((0, 1), (2, 3), (4, 5), (6, 7)))
    with torch.no_grad():
        by_hand = model.head.weight.square().sum(0).view(4, 2).sum(1)
        torch.testing.assert_close(squares(model, piece), by_hand)


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("last", [True, False])
def test_filters_are_not_copied_however_they_lie(each: int, last: bool) -> None:
    """`each` rows a channel, as where several layers' channels are joined."""
    model = Net(lambda s, x: s.a(x), a=conv(3, 8))
    rows = tuple(tuple(range(first, first + each)) for first in range(0, 8, each))
    piece = Slice("a.weight", 0, rows)
    weights = torch.randn(each * 3 * 9)
    expected = filters_of(model, piece) @ weights
    model.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    own = own_rows(model, piece)
    assert own is None
    bank, ordered = filters_beside(model, piece, own, weights)
    assert bank.data_ptr() == model.a.weight.data_ptr()
    torch.testing.assert_close(bank @ ordered, expected)


def test_filters_out_of_order_are_put_in_order() -> None:
    model = Net(lambda s, x: s.a(x), a=conv(3, 4))
    piece = Slice("a.weight", 0, ((2,), (0,), (3,), (1,)))
    weights = torch.randn(27)
    expected = filters_of(model, piece) @ weights
    model.to(memory_format=torch.channels_last)
    bank, ordered = filters_beside(model, piece, own_rows(model, piece), weights)
    torch.testing.assert_close(bank @ ordered, expected)
