"""W-Gates (arXiv 2007.02066): a learned function of a filter's own weights decides if it stays.

Scores s = W* F come from a fully connected layer per producing layer on the layer's filters,
flattened to (n, m*k*k) and standardised by row; layers that write into the same channels share
one gate vector, the mean of their scores. The forward gate is binary, b = (sign(s) + 1) / 2; the
backward pass uses a surrogate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from calibration.widths import ChannelGroup, ChannelGroups
from pipeline.pruning.emptied import let_go
from pipeline.pruning.filters import filters_beside, filters_of, own_rows, producers
from pipeline.pruning.masking import masked as masked
from pipeline.pruning.row_scores import row_scores, standardised
from pipeline.pruning.start import Start, first_scores, fitted
from pipeline.pruning.surrogates import BinaryGate, LiveClamp, Surrogate

EDGE = 0.05  # how far inside all gates are of a group that a plan keeps whole, or lets go


@dataclass(frozen=True)
class GateForm:
    """What a gate is made of."""

    surrogate: Surrogate = "poly"
    start: Start = "signal"
    detach_input: bool = True  # keep gate gradients away from the filters
    steps: Mapping[str, int] = field(default_factory=dict)  # fast widths, by group


class GroupGate(nn.Module):
    """The gate vector of one channel group."""

    def __init__(
        self,
        group: ChannelGroup,
        model: nn.Module,
        floor: int,
        settings: GateForm,
    ) -> None:
        super().__init__()
        self.channels, self.floor = group.channels, floor
        self.step = settings.steps.get(group.name, 1)
        self.surrogate = settings.surrogate
        # how many stay open where gates are held on a plan
        self.register_buffer("count", torch.tensor(group.channels))
        self.producers = producers(model, group)
        self.rows = [own_rows(model, piece) for piece in self.producers]
        self.score = nn.ModuleList()
        wanted = first_scores(model, group, settings.start)
        for piece in self.producers:
            self.score.append(fitted(standardised(filters_of(model, piece)), wanted))

    def layers(self) -> list[nn.Linear]:
        """The fully connected layer of each producer."""
        return list(cast("Iterable[nn.Linear]", self.score))

    def scores(self, model: nn.Module, *, detach_input: bool = False) -> Tensor:
        """(channels,) scores, the mean over the group's producers."""
        total = torch.zeros((), device=next(self.parameters()).device)
        for piece, rows, layer in zip(self.producers, self.rows, self.layers(), strict=True):
            bank, weights = filters_beside(model, piece, rows, layer.weight[0])
            bank = bank.detach() if detach_input else bank
            total = total + row_scores(bank, weights) + layer.bias
        return total / len(self.producers)

    def forward(self, scores: Tensor) -> Tensor:
        """(channels,) binary gates; at least `floor` stay open, those with the best scores."""
        gates: Tensor = BinaryGate.apply(LiveClamp.apply(scores), self.surrogate)
        return _held_open(gates, scores, torch.full_like(gates[0], self.floor))

    def best(self, scores: Tensor) -> Tensor:
        """(channels,) binary gates, the `count` best open."""
        gates: Tensor = BinaryGate.apply(LiveClamp.apply(self.centred(scores)), self.surrogate)
        exact = _is_best(scores, self.get_buffer("count")).to(gates.dtype)
        return gates + (exact - gates).detach()

    def centred(self, scores: Tensor) -> Tensor:
        """(channels,) scores with 0 between the `count` best and the others."""
        count = self.get_buffer("count")
        ordered = scores.detach().sort(descending=True).values
        ends = (ordered[:1] + 2 * EDGE, ordered, ordered[-1:] - 2 * EDGE)
        return scores - torch.cat(ends).index_select(0, torch.stack([count, count + 1])).mean()

    def filled(self, gates: Tensor, scores: Tensor) -> Tensor:
        """The same with the best of the closed ones open, up to the next fast width."""
        if self.step == 1:
            return gates
        return _held_open(gates, scores, torch.ceil(gates.detach().sum() / self.step) * self.step)


def _held_open(gates: Tensor, scores: Tensor, least: Tensor) -> Tensor:
    """`gates` with at least the `least` best-scored ones open; no value is waited for.

    A constant on top: the surrogate's slope still reaches every score.
    """
    best = _is_best(scores, least).to(gates.dtype)
    return gates + (best - gates).detach().clamp_min(0)


def _is_best(scores: Tensor, count: Tensor) -> Tensor:
    """(channels,) whether a score is one of the `count` highest."""
    return scores.detach().argsort(descending=True, stable=True).argsort() < count


class FilterGates(nn.Module):
    """One `GroupGate` per prunable group, in group order."""

    def __init__(
        self,
        groups: ChannelGroups,
        model: nn.Module,
        floors: Mapping[str, int],
        settings: GateForm = GateForm(),  # noqa: B008  a frozen value
        *,
        held: bool = False,
    ) -> None:
        super().__init__()
        self.names, self.settings, self.branches = groups.names, settings, groups.branches
        self.held = held
        self.gate = nn.ModuleList(
            GroupGate(group, model, floors[group.name], settings) for group in groups.prunable
        )

    def scores(self, model: nn.Module) -> dict[str, Tensor]:
        """Group name -> (channels,) scores."""
        detach = self.settings.detach_input
        return {name: gate.scores(model, detach_input=detach) for name, gate in self._named()}

    def of(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Group name -> (channels,) gates of these scores: what the cost counts."""
        if self.held:
            return {name: gate.best(scores[name]) for name, gate in self._named()}
        found = {name: gate(scores[name]) for name, gate in self._named()}
        return let_go(found, scores, self.branches)

    def centred(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Group name -> (channels,) scores as the surrogate sees them: open from 0 on."""
        if not self.held:
            return dict(scores)
        return {name: gate.centred(scores[name]) for name, gate in self._named()}

    def hold(self, kept: Sequence[int]) -> None:
        """From now on, as many gates of each group are open as a plan keeps: the best-scored."""
        for gate, count in zip(self.each(), kept, strict=True):
            gate.get_buffer("count").fill_(count)

    def filled(
        self, gates: Mapping[str, Tensor], scores: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The same, filled up to the fast widths: what the model's forward sees."""
        return {name: gate.filled(gates[name], scores[name]) for name, gate in self._named()}

    def forward(self, model: nn.Module) -> dict[str, Tensor]:
        """Group name -> (channels,) gates."""
        return self.of(self.scores(model))

    def each(self) -> list[GroupGate]:
        """The gates, in group order."""
        return list(cast("Iterable[GroupGate]", self.gate))

    def _named(self) -> list[tuple[str, GroupGate]]:
        return list(zip(self.names, self.each(), strict=True))


def widths_of(gates: Mapping[str, Tensor]) -> Tensor:
    """Open gates per group as a (1, G) tensor, differentiable."""
    return torch.stack([gate.sum() for gate in gates.values()]).unsqueeze(0)
