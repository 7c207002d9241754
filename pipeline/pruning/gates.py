"""W-Gates (arXiv 2007.02066): a learned function of a filter's own weights decides if it stays.

Scores s = W* F come from a fully connected layer per producing layer on the layer's filters,
flattened to (n, m*k*k) and standardised by row; layers that write into the same channels share
one gate vector, the mean of their scores. The forward gate is binary, b = (sign(s) + 1) / 2; the
backward pass uses a polynomial surrogate. Gates apply after batch norm: before it, a closed
channel would come out as the norm's shift, not as nothing.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from calibration.widths import ChannelGroup, ChannelGroups, Plan, Slice

Surrogate = Literal["poly", "tanh", "ste"]

START_LOW, START_HIGH = 0.05, 0.40  # of the first scores: open, and inside the live window


class BinaryGate(torch.autograd.Function):
    """Forward 1[s >= 0]; backward the slope of a continuous surrogate.

    `poly`: db/ds = 2 + 4s on [-1/2, 0), 2 - 4s on [0, 1/2), else 0 (Bi-Real style);
    `tanh`: the slope of (tanh(2s) + 1) / 2; `ste`: 1 everywhere.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.surrogate = surrogate
        return (scores >= 0).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (scores,) = ctx.saved_tensors
        return grads[0] * surrogate_slope(scores, ctx.surrogate), None


def surrogate_slope(scores: Tensor, surrogate: Surrogate) -> Tensor:
    """d(gate)/d(score), elementwise."""
    if surrogate == "ste":
        return torch.ones_like(scores)
    if surrogate == "tanh":
        return 1 - torch.tanh(2 * scores) ** 2
    return torch.clamp(2 - 4 * scores.abs(), min=0)


class LiveClamp(torch.autograd.Function):
    """Clamp into the surrogate's live window; outside, only gradients that lead back in pass.

    Beyond (-1/2, 1/2) the polynomial slope is zero and a gate would freeze for good. With a plain
    straight-through clamp scores run away instead: a few hundred steps of the latency term put
    them so far out that no image brings them back.
    """

    LIMIT = 0.4  # where the polynomial slope is still a fifth of its peak

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        ctx.save_for_backward(scores)
        return scores.clamp(-LiveClamp.LIMIT, LiveClamp.LIMIT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (scores,) = ctx.saved_tensors
        # descent moves a score against its gradient: equal signs mean back towards the window
        outward = (scores.abs() > LiveClamp.LIMIT) & (scores * grads[0] < 0)
        return grads[0].masked_fill(outward, 0)


class GroupGate(nn.Module):
    """The gate vector of one channel group."""

    def __init__(
        self, group: ChannelGroup, model: nn.Module, floor: int, surrogate: Surrogate
    ) -> None:
        super().__init__()
        self.channels, self.floor, self.surrogate = group.channels, floor, surrogate
        self.producers = tuple(piece for piece in group.slices if is_filter_bank(piece, model))
        self.score = nn.ModuleList()
        wanted = _initial_scores([filters_of(model, piece) for piece in self.producers])
        for piece in self.producers:
            self.score.append(_fitted(_standardised(filters_of(model, piece)), wanted))

    def layers(self) -> list[nn.Linear]:
        """The fully connected layer of each producer."""
        return list(cast("Iterable[nn.Linear]", self.score))

    def scores(self, model: nn.Module, *, detach_input: bool = False) -> Tensor:
        """(channels,) scores, the mean over the group's producers."""
        total = torch.zeros((), device=next(self.parameters()).device)
        for piece, layer in zip(self.producers, self.layers(), strict=True):
            filters = filters_of(model, piece)
            filters = filters.detach() if detach_input else filters
            total = total + layer(_standardised(filters)).squeeze(1)
        return total / len(self.producers)

    def forward(self, scores: Tensor) -> Tensor:
        """(channels,) binary gates; at least `floor` stay open, those with the best scores."""
        gates: Tensor = BinaryGate.apply(LiveClamp.apply(scores), self.surrogate)
        if int(gates.sum()) < self.floor:
            best = scores.detach().topk(self.floor).indices
            held_open = torch.zeros_like(gates).index_fill(0, best, 1.0)
            # a constant on top: the surrogate's slope still reaches the score
            gates = gates + (held_open - gates).detach().clamp_min(0)
        return gates


class FilterGates(nn.Module):
    """One `GroupGate` per prunable group, in group order."""

    def __init__(
        self,
        groups: ChannelGroups,
        model: nn.Module,
        *,
        floors: Mapping[str, int],
        surrogate: Surrogate = "poly",
        detach_input: bool = False,
    ) -> None:
        super().__init__()
        self.names = groups.names
        self.detach_input = detach_input
        self.gate = nn.ModuleList(
            GroupGate(group, model, floors[group.name], surrogate) for group in groups.prunable
        )

    def scores(self, model: nn.Module) -> dict[str, Tensor]:
        return {
            name: gate.scores(model, detach_input=self.detach_input) for name, gate in self._named()
        }

    def each(self) -> list[GroupGate]:
        """The gates, in group order."""
        return list(cast("Iterable[GroupGate]", self.gate))

    def _named(self) -> list[tuple[str, GroupGate]]:
        return list(zip(self.names, self.each(), strict=True))

    def forward(self, model: nn.Module) -> dict[str, Tensor]:
        """Group name -> (channels,) gates."""
        scores = self.scores(model)
        return {name: gate(scores[name]) for name, gate in zip(self.names, self.gate, strict=True)}


def widths_of(gates: Mapping[str, Tensor]) -> Tensor:
    """Open gates per group as a (1, G) tensor, differentiable."""
    return torch.stack([gate.sum() for gate in gates.values()]).unsqueeze(0)


@contextlib.contextmanager
def gated(
    model: nn.Module, groups: ChannelGroups, gates: Callable[[], Mapping[str, Tensor]]
) -> Iterator[None]:
    """Within the block, the model's forward multiplies gated outputs by `gates()`.

    `gates` is asked once per gated module and forward; let it return what the step computed.
    """
    handles = []
    try:
        for group in groups.prunable:
            for piece in group.slices:
                if piece.gate:
                    module = model.get_submodule(piece.tensor.rpartition(".")[0])
                    index = _index(piece, module)
                    hook = functools.partial(_apply, name=group.name, index=index, gates=gates)
                    handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def _apply(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    output: Tensor,
    *,
    name: str,
    index: Tensor | None,
    gates: Callable[[], Mapping[str, Tensor]],
) -> Tensor:
    gate = gates()[name]
    if index is not None:  # rows that belong to no channel of the group stay as they are
        gate = torch.cat([gate, gate.new_ones(1)])[index.to(gate.device)]
    return output * gate.to(output.dtype).view(1, -1, *([1] * (output.dim() - 2)))


def _index(piece: Slice, module: nn.Module) -> Tensor | None:
    """Row -> channel of the group; rows of other groups point one past the last channel."""
    rows = getattr(module, piece.tensor.rpartition(".")[2]).shape[piece.dim]
    index = torch.full((rows,), len(piece.rows))
    for channel, owned in enumerate(piece.rows):
        index[list(owned)] = channel
    return None if torch.equal(index, torch.arange(len(piece.rows))) else index


def is_filter_bank(piece: Slice, model: nn.Module) -> bool:
    """A producing layer whose filters map one to one onto the group's channels.

    A depthwise convolution owns no gate: its filters follow the layer before it.
    """
    module = model.get_submodule(piece.tensor.rpartition(".")[0])
    if piece.dim != 0 or not piece.tensor.endswith(".weight"):
        return False
    if isinstance(module, nn.Conv2d):
        return not (module.groups > 1 and module.weight.shape[1] == 1)
    return isinstance(module, nn.Linear)


def _standardised(filters: Tensor) -> Tensor:
    """Rows to mean 0 and norm 1.

    Weight decay on a filter then does not move its score, and a step of the gate layer moves a
    score equally far whatever the fan-in: with spread 1 instead, a 3x3x64 filter's score moves 576
    times as far as its bias does, and gates close by noise alone.
    """
    centred = filters - filters.mean(dim=1, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    return centred / norm.clamp_min(1e-8)


def _initial_scores(banks: list[Tensor]) -> Tensor:
    """(channels,) scores to start from: all open, spread evenly, in the order of filter norms.

    Spread, so that a rising price closes gates one by one and not a group at once; by norm (the
    mean over the group's producers), so that learning starts from a sensible order.
    """
    norms = torch.stack([bank.detach().abs().mean(1) for bank in banks]).mean(0).cpu()
    ranks = norms.argsort().argsort().float()
    wanted: Tensor = START_LOW + (START_HIGH - START_LOW) * ranks / max(len(norms) - 1, 1)
    return wanted


def _fitted(rows: Tensor, wanted: Tensor) -> nn.Linear:
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


def filters_of(model: nn.Module, piece: Slice) -> Tensor:
    """(channels, rows * m*k*k) weights of the filters that make each channel."""
    weight = model.get_parameter(piece.tensor)
    rows = torch.tensor(piece.rows, device=weight.device)
    return weight[rows.ravel()].reshape(len(piece.rows), -1)
