"""W-Gates (arXiv 2007.02066): a learned function of a filter's own weights decides if it stays.

Scores s = W* F come from a fully connected layer per producing layer on the layer's filters,
flattened to (n, m*k*k) and standardised by row; layers that write into the same channels share
one gate vector, the mean of their scores. The forward gate is binary, b = (sign(s) + 1) / 2; the
backward pass uses a surrogate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from calibration.widths import ChannelGroup, ChannelGroups, Slice
from pipeline.pruning.emptied import let_go
from pipeline.pruning.masking import masked as masked
from pipeline.pruning.row_scores import row_scores, standardised
from pipeline.pruning.surrogates import BinaryGate, LiveClamp, Surrogate

Start = Literal["norm", "shuffled", "drawn"]

START_LOW, START_HIGH = 0.05, 0.40  # of the first scores: open, and inside the live window
EDGE = 0.05  # how far inside all gates are of a group that a plan keeps whole, or lets go
DRAWN = 0.1  # standard deviation of first scores that are drawn


@dataclass(frozen=True)
class GateForm:
    """What a gate is made of."""

    surrogate: Surrogate = "poly"
    start: Start = "norm"
    detach_input: bool = False  # keep gate gradients away from the filters
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
        self.producers = tuple(piece for piece in group.slices if is_filter_bank(piece, model))
        self.rows = [own_rows(model, piece) for piece in self.producers]
        self.score = nn.ModuleList()
        wanted = _first_scores(
            [filters_of(model, piece) for piece in self.producers], settings.start
        )
        for piece in self.producers:
            self.score.append(_fitted(standardised(filters_of(model, piece)), wanted))

    def layers(self) -> list[nn.Linear]:
        """The fully connected layer of each producer."""
        return list(cast("Iterable[nn.Linear]", self.score))

    def scores(self, model: nn.Module, *, detach_input: bool = False) -> Tensor:
        """(channels,) scores, the mean over the group's producers."""
        total = torch.zeros((), device=next(self.parameters()).device)
        for piece, rows, layer in zip(self.producers, self.rows, self.layers(), strict=True):
            filters = _filters(model, piece, rows)
            filters = filters.detach() if detach_input else filters
            total = total + row_scores(filters, layer.weight[0]) + layer.bias
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


def is_filter_bank(piece: Slice, model: nn.Module) -> bool:
    """A producing layer whose filters map one to one onto the group's channels.

    A depthwise convolution owns no gate: its filters follow the layer before it.
    """
    if not piece.tensor.endswith(".weight"):  # such as a bias, or what only the graph has
        return False
    module = model.get_submodule(piece.tensor.rpartition(".")[0])
    if isinstance(module, nn.ConvTranspose2d):
        return piece.dim == 1 and module.groups == 1
    if piece.dim != 0:
        return False
    if isinstance(module, nn.Conv2d):
        return not (module.groups > 1 and module.weight.shape[1] == 1)
    return isinstance(module, nn.Linear)


def _first_scores(banks: list[Tensor], start: Start) -> Tensor:
    """(channels,) scores to start from: all open, in the live window.

    `norm` and `shuffled` spread them evenly, so that a rising price closes gates one by one and
    not a group at once; `norm` in the order of filter norms (the mean over the group's
    producers), so that learning starts from a sensible order. `drawn`: normal, as in the paper.
    """
    middle, count = (START_LOW + START_HIGH) / 2, len(banks[0])
    if start == "drawn":
        return (middle + DRAWN * torch.randn(count)).clamp(1e-3, 2 * middle)
    norms = torch.stack([bank.detach().abs().mean(1) for bank in banks]).mean(0).cpu()
    ranks = norms.argsort().argsort().float() if start == "norm" else torch.randperm(count).float()
    wanted: Tensor = START_LOW + (START_HIGH - START_LOW) * ranks / max(count - 1, 1)
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
    return _filters(model, piece, own_rows(model, piece))


def own_rows(model: nn.Module, piece: Slice) -> Tensor | None:
    """The rows of all channels in order; None where they are the whole weight as it stands."""
    rows = torch.tensor(piece.rows).ravel()
    whole = torch.arange(model.get_parameter(piece.tensor).shape[piece.dim])
    return None if torch.equal(rows, whole) else rows


def _filters(model: nn.Module, piece: Slice, rows: Tensor | None) -> Tensor:
    weight = model.get_parameter(piece.tensor).transpose(0, piece.dim)
    own = weight if rows is None else weight[rows.to(weight.device)]
    return own.reshape(len(piece.rows), -1)
