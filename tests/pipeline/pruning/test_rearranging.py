"""Channels that move about: shuffled, split, padded, upsampled, made tokens of, read twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.candidates import Slicer
from pipeline.export import export_onnx
from pipeline.pruning.surgery import shrink
from pipeline.unfused import run_onnx

from .networks import (
    CLASSES,
    OUTPUT,
    Groups,
    Net,
    conv,
    found,
    head,
    pooled,
    relative_gap,
    seeded,
    through,
    traced,
)

PADDED = "channels are padded by fixed amounts (padding shortcut)"
PRODUCT = "channels of tensors that are multiplied with each other"
LAYER_NORM = "LayerNorm over channels: its statistics are of all of them"


def shuffled(x: Tensor, parts: int = 2) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, parts, c // parts, h, w).transpose(1, 2).reshape(n, c, h, w)


def channel_shuffle() -> Net:
    """ShuffleNet's unit: half of the channels pass by, the others are convolved, both mixed."""

    def middle(s: Net, x: Tensor) -> Tensor:
        kept, used = F.relu(x).chunk(2, 1)
        return shuffled(torch.cat([kept, F.relu(s.b(used))], 1))

    return through(middle, b=conv(8, 8))


def split_by_an_attribute() -> Net:
    """Res2Net's unit: the code of the module knows how wide a part is."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 4
            self.convs = nn.ModuleList(conv(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            first, *others = torch.split(x, self.width, 1)
            made = [F.relu(c(part)) for c, part in zip(self.convs, others, strict=True)]
            return torch.cat([first, *made], 1)

    return through(lambda s, x: s.parts(F.relu(x)), parts=Parts())


def split_by_a_list() -> Net:
    """MixNet's unit: kernels of several sizes, each on a part of its own width."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.splits = [10, 6]
            self.convs = nn.ModuleList(
                [conv(10, 10, 3, groups=10), conv(6, 6, 5, groups=6)],
            )

        def forward(self, x: Tensor) -> Tensor:
            parts = torch.split(x, self.splits, 1)
            return torch.cat([c(part) for c, part in zip(self.convs, parts, strict=True)], 1)

    return through(lambda s, x: F.relu(s.mixed(F.relu(x))), mixed=Mixed())


def cut_by_an_attribute() -> Net:
    """A dual path: the first channels are added to, the others are kept beside them."""

    class Paths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.added = 10
            self.conv = conv(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x[:, : self.added] + self.conv(x), x[:, self.added :]], 1)

    return through(lambda s, x: s.paths(F.relu(x)), paths=Paths())


def padding_shortcut() -> Net:
    """ResNet's option A: half as many channels arrive between zeros."""

    def middle(s: Net, x: Tensor) -> Tensor:
        x = F.relu(x)
        return F.relu(s.b(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))

    return through(middle, b=conv(16, 24, stride=2), z=conv(24, 16))


def pixel_shuffle() -> Net:
    return through(lambda s, x: s.b(F.pixel_shuffle(F.relu(x), 2)), b=conv(4, 8), z=conv(8, 16))


def pixel_unshuffle() -> Net:
    return through(lambda s, x: F.pixel_unshuffle(F.relu(x), 2), z=conv(64, 16))


def transposed_convolutions() -> Net:
    """One that makes channels, and a depthwise one behind it."""
    return through(
        lambda s, x: s.deep(F.relu(s.n(s.t(F.relu(x))))),
        t=nn.ConvTranspose2d(16, 12, 2, stride=2),
        n=nn.BatchNorm2d(12),
        deep=nn.ConvTranspose2d(12, 12, 2, stride=2, groups=12),
        z=conv(12, 16),
    )


def upsampled_and_expanded() -> Net:
    def middle(s: Net, x: Tensor) -> Tensor:
        x = F.interpolate(F.relu(x), scale_factor=2)
        return x + x.mean((2, 3), keepdim=True).expand_as(x)

    return through(middle)


def channel_prelu() -> Net:
    return through(lambda s, x: s.p(x), p=nn.PReLU(16))


def narrow_sub_convolutions() -> Net:
    """ResNeXt's unit: eight convolutions of two channels each, which go as a whole."""
    return through(lambda s, x: F.relu(s.b(F.relu(x))), b=conv(16, 24, groups=8), z=conv(24, 16))


def blur() -> Net:
    """A fixed depthwise filter that is no weight and no entry of the state dict."""

    class Blur(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.channels = 16
            self.register_buffer("filt", torch.full((16, 1, 3, 3), 1 / 9), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.filt, stride=2, groups=self.channels)

    return through(lambda s, x: s.blur(F.relu(x)), blur=Blur())


def split_attention() -> Net:
    """ResNeSt's unit: two convolutions side by side, weighed against each other by channel."""

    def middle(s: Net, x: Tensor) -> Tensor:
        made = F.relu(s.b(F.relu(x)))
        n, c, h, w = made.shape
        parts = made.reshape(n, 2, c // 2, h, w)
        squeezed = F.relu(s.down(parts.sum(1).mean((2, 3), keepdim=True)))
        weights = s.up(squeezed).view(n, 1, 2, -1).transpose(1, 2).softmax(1).reshape(n, c, 1, 1)
        return (parts * weights.reshape(n, 2, c // 2, 1, 1)).sum(1)

    layers = {"b": conv(16, 32, groups=2), "down": conv(16, 8, 1), "up": conv(8, 32, 1)}
    return through(middle, **layers)


def tokens() -> Net:
    """ConvNeXt's unit: layer norm over channels, an inner layer of tokens, a layer scale."""

    def middle(s: Net, x: Tensor) -> Tensor:
        made = s.n(s.deep(x).permute(0, 2, 3, 1))
        made = s.narrow(F.gelu(s.wide(made))) * s.scale
        return x + made.permute(0, 3, 1, 2)

    net = through(
        middle,
        deep=conv(16, 16, 7, groups=16),
        n=nn.LayerNorm(16),
        wide=nn.Linear(16, 48),
        narrow=nn.Linear(48, 16),
    )
    net.scale = nn.Parameter(torch.rand(16))
    return net


def attention() -> Net:
    """Self-attention over pixels stays full; the layers around it do not."""

    def middle(s: Net, x: Tensor) -> Tensor:
        tokens = F.relu(s.b(F.relu(x))).flatten(2).transpose(1, 2)
        n, length, _ = tokens.shape
        query, key, value = s.qkv(tokens).reshape(n, length, 3, 4, 6).permute(2, 0, 3, 1, 4)
        seen = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        made = s.out(seen.transpose(1, 2).reshape(n, length, 24))
        return made.transpose(1, 2).reshape(n, -1, 8, 8)

    return through(middle, b=conv(16, 20), qkv=nn.Linear(20, 72), out=nn.Linear(24, 16))


def two_heads() -> Net:
    """Two outputs as one tensor: each head stays full, what both read does not."""

    def forward(s: Net, x: Tensor) -> Tensor:
        shared = F.relu(s.b(F.relu(s.a(x))))
        return torch.cat([s.boxes(shared).flatten(1), s.head(pooled(shared))], 1)

    return Net(forward, a=conv(3, 16), b=conv(16, 16), boxes=conv(16, 4), head=head(16))


USUAL: Groups = {"a": (16, None), "z": (16, None), "head": (CLASSES, OUTPUT)}
CASES: dict[Callable[[], Net], Groups] = {
    channel_shuffle: {"a": (8, None), "z": (16, None)},
    split_by_an_attribute: {"a": (4, None), **{f"parts.convs.{i}": (4, None) for i in range(3)}},
    split_by_a_list: {"a": (10, None), "a#2": (6, None)},
    cut_by_an_attribute: {"a": (10, None), "a#2": (6, None)},
    padding_shortcut: {"b": (8, PADDED)},
    pixel_shuffle: {"a": (4, None), "b": (8, None)},
    pixel_unshuffle: {},
    transposed_convolutions: {"t": (12, None)},
    upsampled_and_expanded: {},
    channel_prelu: {},
    narrow_sub_convolutions: {"a": (8, None)},
    blur: {},
    split_attention: {"a": (8, None), "b": (16, None), "down": (8, None)},
    tokens: {"a": (16, LAYER_NORM), "wide": (48, None)},
    attention: {"b": (20, None), "qkv": (6, PRODUCT), "out": (16, None)},
    two_heads: {"b": (16, None), "boxes": (4, OUTPUT)},
}


def expected(make: Callable[[], Net]) -> Groups:
    groups = {**USUAL, **CASES[make]}
    return {name: group for name, group in groups.items() if name != "z" or make is not two_heads}


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_it_is_cut_as_it_is_gated(make: Callable[[], Net]) -> None:
    with seeded():
        network = traced(make())
    assert found(network) == expected(make)
    for seed in range(2):
        plan = network.plan(seed)
        assert network.gap(plan) < 1e-9
        small = shrink(network.model, network.skeleton, plan)
        with torch.no_grad():
            logits = small(network.images).numpy()
        cut = run_onnx(Slicer(network.skeleton).slice(plan), network.images.numpy())
        assert relative_gap(cut, logits) < 1e-4
    exported = run_onnx(export_onnx(small, network.images), network.images.numpy())
    assert relative_gap(exported, logits) < 1e-4
