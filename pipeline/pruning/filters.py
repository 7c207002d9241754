"""The weights of a channel: the filters that make it, and those that read it in later layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calibration.widths import ChannelGroup, Slice


def is_filter_bank(piece: Slice, model: nn.Module) -> bool:
    """A producing layer whose filters map one to one onto the group's channels.

    A depthwise convolution owns no gate: its filters follow the layer before it.
    """
    module = _owner(piece, model)
    if isinstance(module, nn.ConvTranspose2d):
        return piece.dim == 1 and module.groups == 1
    if piece.dim != 0:
        return False
    if isinstance(module, nn.Conv2d):
        return not (module.groups > 1 and module.weight.shape[1] == 1)
    return isinstance(module, nn.Linear)


def producers(model: nn.Module, group: ChannelGroup) -> tuple[Slice, ...]:
    """The filter banks that make the group's channels."""
    return tuple(piece for piece in group.slices if is_filter_bank(piece, model))


def readers(model: nn.Module, group: ChannelGroup) -> tuple[Slice, ...]:
    """The weights that the group's channels are multiplied with in the layers that read them."""
    return tuple(piece for piece in group.slices if _reads(piece, model))


def _reads(piece: Slice, model: nn.Module) -> bool:
    module = _owner(piece, model)
    if isinstance(module, nn.ConvTranspose2d):
        return piece.dim == 0
    return isinstance(module, nn.Conv2d | nn.Linear) and piece.dim == 1


def _owner(piece: Slice, model: nn.Module) -> nn.Module | None:
    """The module whose weight it is; None of anything else: a bias, what only the graph has."""
    if not piece.tensor.endswith(".weight"):
        return None
    return model.get_submodule(piece.tensor.rpartition(".")[0])


def filters_of(model: nn.Module, piece: Slice) -> Tensor:
    """(channels, rows * m*k*k) weights of the filters that make each channel."""
    return filters(model, piece, own_rows(model, piece))


def own_rows(model: nn.Module, piece: Slice) -> Tensor | None:
    """The rows of all channels in order; None where they are the whole weight as it stands."""
    rows = torch.tensor(piece.rows).ravel()
    whole = torch.arange(model.get_parameter(piece.tensor).shape[piece.dim])
    return None if torch.equal(rows, whole) else rows


def filters(model: nn.Module, piece: Slice, rows: Tensor | None) -> Tensor:
    """What `filters_of` gives, `own_rows` found before."""
    weight = model.get_parameter(piece.tensor).transpose(0, piece.dim)
    own = weight if rows is None else weight[rows.to(weight.device)]
    return own.reshape(len(piece.rows), -1)


def filters_beside(
    model: nn.Module, piece: Slice, rows: Tensor | None, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """`filters` and the (rows * m*k*k,) weights of their values, in an order that both share.

    That in which filters lie channels last, if they do: a training would hold a copy of them all.
    """
    bank = model.get_parameter(piece.tensor)
    if rows is not None or piece.dim != 0 or bank.dim() != 4 or bank.is_contiguous():
        return filters(model, piece, rows), weights
    ordered = weights.view(-1, *bank.shape[1:]).permute(0, 2, 3, 1)
    return bank.permute(0, 2, 3, 1).reshape(len(piece.rows), -1), ordered.reshape(-1)


def l1_norm(model: nn.Module, group: ChannelGroup) -> Tensor:
    """(channels,) mean |weight| of the filters that make each channel."""
    banks = [filters_of(model, piece) for piece in producers(model, group)]
    return torch.stack([bank.abs().mean(1) for bank in banks]).mean(0)


def squares(model: nn.Module, piece: Slice) -> Tensor:
    """(channels,) sums of the squared weights that each channel owns in the piece."""
    weight = model.get_parameter(piece.tensor).movedim(piece.dim, 0)
    return weight[torch.tensor(piece.rows).ravel()].reshape(len(piece.rows), -1).square().sum(1)


def scales(model: nn.Module, group: ChannelGroup) -> Tensor | None:
    """(channels,) mean |scale| of the batch norms that the channels pass before a gate.

    None if not every layer that makes them has one.
    """
    owners = {p.tensor.rpartition(".")[0]: p for p in group.slices if p.gate}
    modules = {name: model.get_submodule(name) for name in owners}
    if not owners or not all(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine for m in modules.values()
    ):
        return None
    found = [
        model.get_parameter(f"{name}.weight").abs()[torch.tensor(piece.rows)].mean(1)
        for name, piece in owners.items()
    ]
    return torch.stack(found).mean(0)
