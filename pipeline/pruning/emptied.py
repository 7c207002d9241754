"""Residual branches cut out of a torch module: their layers go, their sum stays in the code.

What the code calls where a layer stood gives zeros, of one channel inside the branch and of as
many as the sum needs at its end; the export leaves such sums out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from calibration.branches import Branch
from pipeline.errors import GroupsError


class Nothing(nn.Module):
    """Zeros of `channels` where a layer of a branch stood, as wide and high as its output was."""

    def __init__(self, channels: int, window: nn.Conv2d | None = None) -> None:
        super().__init__()
        self.channels, self.steps = channels, None if window is None else _steps(window)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, channels, h', w')."""
        pixels = list(x.shape[2:])
        if self.steps is not None:
            pixels = [
                (size + added - span) // stride + 1
                for size, (added, span, stride) in zip(pixels, self.steps, strict=True)
            ]
        return x.new_zeros((x.shape[0], self.channels, *pixels))


def can_be_emptied(module: nn.Module) -> bool:
    """Whether `Nothing` knows the shape of what the layer gives."""
    if type(module) is nn.Conv2d:
        return module.padding != "same" or all(step == 1 for step in module.stride)
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def empty(model: nn.Module, branches: Iterable[Branch]) -> None:
    """Put `Nothing` in the place of every layer of the branches."""
    for branch in branches:
        for path in branch.layers:
            layer = model.get_submodule(path)
            if not can_be_emptied(layer):
                raise GroupsError(
                    f"the plan removes {branch.name}, but {path} is a {type(layer).__name__}",
                    fix="run: pipeline trace",
                )
            window = layer if isinstance(layer, nn.Conv2d) else None
            channels = _outputs(layer) if path == branch.name else 1
            model.set_submodule(path, Nothing(channels, window))


def _outputs(layer: nn.Module) -> int:
    outputs = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.num_features
    assert isinstance(outputs, int)
    return outputs


def _steps(conv: nn.Conv2d) -> list[tuple[int, int, int]]:
    """Padding added, span of the window and stride, along each image axis."""
    spans = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.padding == "same":
        added = [span - 1 for span in spans]
    elif isinstance(conv.padding, str):
        added = [0, 0]
    else:
        added = [2 * int(padding) for padding in conv.padding]
    return list(zip(added, spans, (int(step) for step in conv.stride), strict=True))


def any_open(gates: Mapping[str, Tensor], branch: Branch) -> Tensor:
    """() 1 if any gate of the branch's groups is open; else 0, and so is what the branch adds."""
    return torch.stack([gates[name].amax() for name in branch.groups]).amax()


def ajar(
    gates: Mapping[str, Tensor], switches: Mapping[str, Tensor], branches: Iterable[Branch]
) -> dict[str, Tensor]:
    """The gates, all open in branches that their switch keeps out.

    Behind closed gates a branch computes nothing, and no image could say what it would add.
    """
    found = dict(gates)
    for branch in branches:
        gone = switches[branch.name] == 0
        for name in branch.groups:
            found[name] = found[name].masked_fill(gone, 1.0)
    return found


def let_go(
    gates: Mapping[str, Tensor], scores: Mapping[str, Tensor], branches: Iterable[Branch]
) -> dict[str, Tensor]:
    """The gates, without those that only a floor holds open in a branch whose own all closed.

    The surrogate's slope still reaches every score, so that a branch can come back.
    """
    found = dict(gates)
    for branch in branches:
        stays = torch.stack([(scores[name] >= 0).any() for name in branch.groups]).any()
        for name in branch.groups:
            found[name] = gates[name] - (gates[name] * ~stays).detach()
    return found
