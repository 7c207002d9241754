"""Gates at work: hooks by which a dense model computes what the sliced one would.

Gates apply after batch norm: before it, a closed channel would come out as the norm's shift, not
as nothing.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from calibration.branches import Branch
from calibration.widths import ChannelGroups, Plan, Slice
from pipeline.pruning.emptied import any_open

Gates = Callable[[], Mapping[str, Tensor]]


@contextlib.contextmanager
def gated(
    model: nn.Module,
    groups: ChannelGroups,
    gates: Gates,
    switches: Gates | None = None,
) -> Iterator[None]:
    """Within the block, the model's forward multiplies gated outputs by `gates()`.

    What a branch adds is multiplied by its own of `switches()`, by name; without them, by 1 if any
    gate of its groups is open. Both are asked once per gated module and forward; let them return
    what the step computed.
    """
    with contextlib.ExitStack() as stack:
        for group in groups.prunable:
            for piece in group.slices:
                if piece.gate:
                    module = model.get_submodule(piece.tensor.rpartition(".")[0])
                    ask = functools.partial(_rows_gate, group.name, _index(piece, module), gates)
                    for hook in _hooks(module, ask):
                        stack.callback(hook.remove)
        for branch in groups.branches:  # without its channels it adds a constant: it goes with them
            ask = functools.partial(_branch_gate, branch, gates, switches)
            for hook in _hooks(model.get_submodule(branch.name), ask):
                stack.callback(hook.remove)
        yield


def masked(
    model: nn.Module, groups: ChannelGroups, plan: Plan
) -> contextlib.AbstractContextManager[None]:
    """Gate the model by a plan's fixed masks: what physical slicing must be equal to."""
    like = next(model.parameters())
    masks = {}
    for group in groups.prunable:
        mask = torch.zeros(group.channels, dtype=like.dtype, device=like.device)
        mask[list(plan.kept[group.name])] = 1
        masks[group.name] = mask
    return gated(model, groups, lambda: masks)


def _rows_gate(name: str, index: Tensor | None, gates: Gates) -> Tensor:
    """(rows,) gates of a module's rows; those of no channel of the group stay as they are."""
    gate = gates()[name]
    if index is None:
        return gate
    return torch.cat([gate, gate.new_ones(1)])[index.to(gate.device)]


def _branch_gate(branch: Branch, gates: Gates, switches: Gates | None) -> Tensor:
    """() gate of all that a branch adds."""
    return any_open(gates(), branch) if switches is None else switches()[branch.name]


def _hooks(module: nn.Module, ask: Callable[[], Tensor]) -> list[RemovableHandle]:
    """Gate the module's output, in a batch norm by its scale and shift."""

    def multiply(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        shape = [1] * output.dim()
        shape[-1 if isinstance(module, nn.Linear) else 1] = -1
        return output * ask().to(output.dtype).view(shape)

    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
        return _norm_hooks(module, ask)
    return [module.register_forward_hook(multiply)]


def _norm_hooks(module: nn.Module, ask: Callable[[], Tensor]) -> list[RemovableHandle]:
    """The same function as a product of maps and gates, without a pass over the maps."""
    before: list[tuple[nn.Parameter | None, nn.Parameter | None]] = []

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        scale, shift = module._parameters["weight"], module._parameters["bias"]
        assert scale is not None
        assert shift is not None
        before.append((scale, shift))
        gate = ask().to(scale.dtype)
        gated = {"weight": scale * gate, "bias": shift * gate}
        module._parameters.update(cast("dict[str, nn.Parameter]", gated))

    def leave(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None) -> None:
        scale, shift = before.pop()
        module._parameters.update(weight=scale, bias=shift)

    # the last one in leaves first, also when the forward fails
    return [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, prepend=True, always_call=True),
    ]


def _index(piece: Slice, module: nn.Module) -> Tensor | None:
    """Row -> channel of the group; rows of other groups point one past the last channel."""
    rows = getattr(module, piece.tensor.rpartition(".")[2]).shape[piece.dim]
    index = torch.full((rows,), len(piece.rows))
    for channel, owned in enumerate(piece.rows):
        index[list(owned)] = channel
    return None if torch.equal(index, torch.arange(len(piece.rows))) else index
