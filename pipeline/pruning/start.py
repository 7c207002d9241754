"""The scores that gates start from, and the layers that give them.

A gate learns within a few hundred steps what it can: the order it starts in matters. A filter's
norm says little where a batch norm follows, which takes it out again. What a channel does to the
rest of the network is its spread after the batch norm times the weights that read it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from calibration.widths import ChannelGroup
from pipeline.pruning.filters import l1_norm, readers, scales, squares

Start = Literal["signal", "norm", "shuffled", "drawn"]

LOW, HIGH = 0.05, 0.40  # of the first scores: open, and inside the live window
DRAWN = 0.1  # standard deviation of first scores that are drawn


def first_scores(model: nn.Module, group: ChannelGroup, start: Start) -> Tensor:
    """(channels,) scores to start from: all open, in the live window.

    All but `drawn` spread them evenly, so that a rising price closes gates one by one and not a
    group at once: in the order of what channels pass on (`signal`), of filter norms (`norm`) or in
    any (`shuffled`). `drawn`: normal, as in the paper.
    """
    middle, count = (LOW + HIGH) / 2, group.channels
    if start == "drawn":
        return (middle + DRAWN * torch.randn(count)).clamp(1e-3, 2 * middle)
    ranks = _order(model, group, start).argsort().float()
    wanted: Tensor = LOW + (HIGH - LOW) * ranks / max(count - 1, 1)
    return wanted


def _order(model: nn.Module, group: ChannelGroup, start: Start) -> Tensor:
    """(channels,) channels from the one that is worth least on."""
    if start == "shuffled":
        return torch.randperm(group.channels)
    with torch.no_grad():
        worth = signal(model, group) if start == "signal" else l1_norm(model, group)
    return worth.cpu().argsort()


def signal(model: nn.Module, group: ChannelGroup) -> Tensor:
    """(channels,) what each passes on: its spread times the L2 norm of the weights that read it.

    The spread is the batch norm's scale; without one, the norm of the filters.
    """
    found = scales(model, group)
    spread = l1_norm(model, group) if found is None else found
    reading = [squares(model, piece) for piece in readers(model, group)]
    return spread * torch.stack(reading).sum(0).sqrt() if reading else spread


def fitted(rows: Tensor, wanted: Tensor) -> nn.Linear:
    """A layer whose scores on the standardised rows are as near to `wanted` as it can (ridge)."""
    rows = rows.detach().cpu()
    layer = nn.Linear(rows.shape[1], 1)
    middle = float(wanted.mean())
    gram = rows @ rows.T + 1e-3 * torch.eye(len(rows))
    with torch.no_grad():
        layer.weight.copy_((rows.T @ torch.linalg.solve(gram, wanted - middle)).unsqueeze(0))
        layer.bias.fill_(middle)
        # more filters than weights a filter: the fit is not exact, yet every gate starts open
        lowest = float((layer(rows) - middle).min())
        layer.weight.mul_(min(1.0, (middle - 1e-3) / max(-lowest, 1e-12)))
    return layer
