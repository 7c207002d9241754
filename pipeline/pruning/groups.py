"""Tracing: from a torch model to its skeleton and channel groups, and a numerical proof of both."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import onnx
import torch
from torch import nn

from calibration.candidates import Slicer
from calibration.skeleton import Layer, Skeleton
from calibration.widths import ChannelGroup, ChannelGroups, Plan, Slice
from pipeline.errors import ModelError
from pipeline.export import export_onnx
from pipeline.pruning.adapting import make_width_free
from pipeline.pruning.filters import is_filter_bank
from pipeline.pruning.masking import masked
from pipeline.pruning.operators import OPERATORS, not_analysed
from pipeline.pruning.propagation import Code, Propagation
from pipeline.pruning.surgery import shrink
from pipeline.unfused import run_onnx

Residual = Literal["tied", "inner"]
# of torch, which has no narrower type, of its norms, and of a network that asserts its own shapes
SHAPE_ERRORS = (RuntimeError, ValueError, AssertionError)
LARGE = 100_000_000  # weights; a proof in float64 would take several times the network's memory


def trace(model: nn.Module, example: torch.Tensor, *, residual: Residual = "tied") -> Skeleton:
    """Find the channel groups of `model` and export its skeleton; example (N, C, H, W).

    `residual="inner"` keeps channels full that several layers add into. Every group is then
    checked numerically; one whose sliced form computes something else is frozen with the reason.
    """
    return freeze_mismatches(model, _analysed(model, example, residual))


def _analysed(model: nn.Module, example: torch.Tensor, residual: Residual) -> Skeleton:
    proto = onnx.load_from_string(export_onnx(model, example, keep_names=True))
    named = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    walk = Propagation(proto, frozenset(named | set(model.state_dict())), Code(_integers(model)))
    walk.run(OPERATORS, otherwise=not_analysed)
    make_width_free(proto, walk)
    groups = _freeze_without_filters(model, assemble(walk, residual))
    n, c, h, w = example.shape
    return Skeleton(
        onnx_bytes=proto.SerializeToString(),
        groups=groups,
        layers=tuple(
            Layer(item.tensor, item.positions, walk.shape(item.tensor)) for item in walk.layers
        ),
        parameters={name: tuple(item.shape) for name, item in model.named_parameters()},
        input_shape=(n, c, h, w),
    )


def _integers(model: nn.Module) -> dict[str, dict[str, int]]:
    """Whole numbers that modules keep, also in lists: their code may cut tensors there.

    torch's own layers repeat only the sizes of their tensors, which surgery refreshes, and
    convolutions their groups.
    """
    found: dict[str, dict[str, int]] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            found[path] = {"groups": module.groups}
        elif not type(module).__module__.startswith("torch.nn."):
            kept = found.setdefault(path, {})
            for name, value in vars(module).items():
                if type(value) is int:
                    kept[name] = value
                elif isinstance(value, list | tuple) and all(type(item) is int for item in value):
                    kept |= {f"{name}.{index}": item for index, item in enumerate(value)}
    return found


def assemble(walk: Propagation, residual: Residual) -> ChannelGroups:
    """Group channels that own rows in exactly the same tensors."""
    occurrences: dict[int, list[tuple[int, int]]] = defaultdict(list)  # root -> (use, row)
    for index, use in enumerate(walk.uses):
        for row, root in enumerate(walk.identities.roots(use.ids)):
            occurrences[int(root)].append((index, row))
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for root, found in occurrences.items():
        alike[tuple(index for index, _ in found)].append(root)
    groups = [
        _group(walk, roots, occurrences, residual)
        for signature, roots in alike.items()
        if any(walk.uses[index].produces for index in signature)
    ]
    return ChannelGroups(tuple(_unique_names(groups)))


def _group(
    walk: Propagation,
    roots: list[int],
    occurrences: Mapping[int, list[tuple[int, int]]],
    residual: Residual,
) -> ChannelGroup:
    indices = list(dict.fromkeys(index for index, _ in occurrences[roots[0]]))
    uses = {index: walk.uses[index] for index in indices}
    rows_of: dict[tuple[int, int], list[int]] = defaultdict(list)
    for root in roots:
        for index, row in occurrences[root]:
            rows_of[root, index].append(row)
    slices = tuple(
        Slice(
            use.tensor,
            use.dim,
            tuple(tuple(rows_of[root, index]) for root in roots),
            use.gate,
        )
        for index, use in uses.items()
    )
    producers = [use.tensor for use in uses.values() if use.produces]
    frozen = next((r for r in (walk.identities.reason(root) for root in roots) if r), None)
    kind: Literal["inner", "stream"] = "stream" if len(producers) > 1 else "inner"
    if frozen is None and kind == "stream" and residual == "inner":
        frozen = "residual stream, kept full by --residual inner"
    name = producers[0].rpartition(".")[0]
    return ChannelGroup(name, len(roots), slices, kind, frozen)


def _freeze_without_filters(model: nn.Module, groups: ChannelGroups) -> ChannelGroups:
    """Freeze groups for which a gate has no filters to read."""
    reason = "its filters are not the weight of a Conv2d or Linear layer"
    return ChannelGroups(
        tuple(
            group
            if group.frozen or any(is_filter_bank(piece, model) for piece in group.slices)
            else replace(group, frozen=reason)
            for group in groups.every
        )
    )


def _unique_names(groups: list[ChannelGroup]) -> list[ChannelGroup]:
    """Two groups may share their first producer (a concat read in parts): number the later ones."""
    seen: dict[str, int] = defaultdict(int)
    named = []
    for group in groups:
        seen[group.name] += 1
        again = seen[group.name]
        named.append(group if again == 1 else replace(group, name=f"{group.name}#{again}"))
    return named


# --- the numerical proof ---------------------------------------------------------------------


def freeze_mismatches(model: nn.Module, skeleton: Skeleton) -> Skeleton:
    """Freeze groups whose sliced network differs from the masked one; then check the ONNX cut.

    The proof runs in float64 (networks of 100 million weights and more: float32) on a copy with
    random batch-norm statistics, so that a shift that should have gone with its channel shows;
    two random cuts of all groups prove each of them.
    """
    proof = Proof.of(model, skeleton)
    every = skeleton.groups
    if every.prunable and (reason := proof.mismatch(skeleton, every.names)):
        blamed = proof.blame(skeleton, every.names) or dict.fromkeys(every.names, reason)
        frozen = [replace(g, frozen=blamed.get(g.name, g.frozen)) for g in every.every]
        skeleton = replace(skeleton, groups=ChannelGroups(tuple(frozen)))
        if skeleton.groups.prunable and proof.mismatch(skeleton, skeleton.groups.names):
            raise ModelError(
                "slicing the model's groups together changes its outputs beyond what each does",
                fix="report this model; `--residual inner` may work meanwhile",
            )
    del proof
    check_onnx_cut(model, skeleton, random_plan(skeleton, skeleton.groups.names, seed=1))
    return skeleton


def random_plan(skeleton: Skeleton, names: tuple[str, ...], seed: int = 0) -> Plan:
    """Random channels of the named groups, half of them (seed 0) or any number; others full."""
    rng = np.random.default_rng(seed)
    kept = {}
    for group in skeleton.groups.prunable:
        some = int(rng.integers(1, group.channels + 1)) if seed else max(1, group.channels // 2)
        count = some if group.name in names else group.channels
        rows = rng.permutation(group.channels)[:count]
        kept[group.name] = tuple(sorted(int(row) for row in rows))
    return Plan(skeleton.sha256, kept)


@dataclass(frozen=True)
class Proof:
    """Compares gated and sliced outputs of a probe network on fixed images."""

    probe: nn.Module
    images: torch.Tensor
    tolerance: float  # of the largest output

    @classmethod
    def of(cls, model: nn.Module, skeleton: Skeleton) -> Self:
        exact = sum(item.numel() for item in model.parameters()) < LARGE
        probe = _scrambled(model, torch.float64 if exact else torch.float32)
        images = torch.randn(2, *skeleton.input_shape[1:], generator=_rng(), dtype=torch.float64)
        return cls(probe, images.to(next(probe.parameters()).dtype), 1e-6 if exact else 1e-4)

    def blame(self, skeleton: Skeleton, names: tuple[str, ...]) -> dict[str, str]:
        """The groups that fail, each with how; halving finds a few among many quickly."""
        reason = self.mismatch(skeleton, names)
        if reason is None:
            return {}
        if len(names) == 1:
            return {names[0]: reason}
        half = len(names) // 2
        return self.blame(skeleton, names[:half]) | self.blame(skeleton, names[half:])

    def mismatch(self, skeleton: Skeleton, names: tuple[str, ...]) -> str | None:
        """How the outputs differ when the named groups are cut; None if they agree."""
        plans = [random_plan(skeleton, names, seed) for seed in (0, 1)]
        return next((found for plan in plans if (found := self.gap(skeleton, plan))), None)

    def gap(self, skeleton: Skeleton, plan: Plan) -> str | None:
        """How the outputs differ under one plan."""
        with torch.no_grad():
            try:
                with masked(self.probe, skeleton.groups, plan):
                    gated = self.probe(self.images)
                sliced = shrink(self.probe, skeleton, plan)(self.images)
            except SHAPE_ERRORS as error:
                said = str(error).splitlines() or [type(error).__name__]
                return f"the gated or sliced network does not run: {said[0]}"
        if gated.shape != sliced.shape:
            return f"the sliced network's output is {tuple(sliced.shape)}"
        worst = float((gated - sliced).abs().max() / gated.abs().max().clamp_min(1e-30))
        return (
            None if worst <= self.tolerance else f"sliced and gated outputs differ by {worst:.1e}"
        )


def check_onnx_cut(model: nn.Module, skeleton: Skeleton, plan: Plan) -> None:
    """ModelError unless the cut skeleton computes what the cut torch model does."""
    images = torch.randn(*skeleton.input_shape, generator=_rng())
    small = shrink(model, skeleton, plan).eval()
    with torch.no_grad():
        expected = small(images).numpy()
    got = run_onnx(Slicer(skeleton).slice(plan), images.numpy())
    worst = float(np.abs(expected - got).max() / max(np.abs(expected).max(), 1e-30))
    if worst > 1e-4:
        raise ModelError(
            f"the sliced ONNX skeleton differs from the sliced torch model by {worst:.1e}",
            fix="report this model: its exported graph is not what the module computes",
        )


def _scrambled(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in eval mode with random batch-norm statistics and affine parameters."""
    probe = copy.deepcopy(model).cpu().to(dtype).eval()
    rng = _rng()
    for module in probe.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.bias):
                if tensor is not None:
                    tensor.data.normal_(generator=rng).mul_(0.3)
            for tensor in (module.running_var, module.weight):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 1.5, generator=rng)
    return probe


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
