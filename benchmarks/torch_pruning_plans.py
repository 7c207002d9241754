"""Plans by torch-pruning's own pruners, at a measured latency: baselines for the accuracy study.

`tp-l1`: the L1 norm of each filter; `tp-group-norm`: GroupNormPruner; `tp-bn-scale`: BNScalePruner
(Network Slimming, arXiv 1708.06519); none with its sparse training. The first two take the same
ratio from every layer, as its examples do, down to 8 channels: it rounds widths down, and leaves a
layer whole that would be rounded to nothing. Those that end in `-global` rank the channels of all
layers by its scores with one another, as its recipes for CIFAR do; there a layer keeps at least 8
channels and widths are rounded up. Only the groups that the skeleton lets be pruned are: the
others' layers are ignored. Needs `pip install torch-pruning`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
from numpy.typing import NDArray
from torch import nn

from calibration.candidates import Slicer
from calibration.measure import Bench
from calibration.skeleton import Skeleton
from calibration.widths import ChannelGroup, Plan
from targets import load_target
from targets.base import TargetOptions

ROUND_TO = 8  # channels, as ours
HALVINGS = 7
GLOBAL = "-global"
PRUNERS = {
    "tp-l1": (
        torch_pruning.pruner.BasePruner,
        torch_pruning.importance.GroupMagnitudeImportance(p=1, group_reduction="first"),
    ),
    "tp-group-norm": (
        torch_pruning.pruner.GroupNormPruner,
        torch_pruning.importance.GroupMagnitudeImportance(p=2),
    ),
    "tp-bn-scale": (
        torch_pruning.pruner.BNScalePruner,
        torch_pruning.importance.BNScaleImportance(),
    ),
}
METHODS = ("tp-l1", "tp-group-norm", *(f"{name}{GLOBAL}" for name in PRUNERS))


def pruned_plan(model: nn.Module, skeleton: Skeleton, method: str, ratio: float) -> Plan:
    """What the pruner keeps at a pruning ratio."""
    small = copy.deepcopy(model).eval()
    modules = dict(small.named_modules())
    groups = {group.name: group for group in skeleton.groups.prunable}
    names = {id(modules[name]): name for name in groups}
    options = {
        "ignored_layers": [
            module
            for name, module in modules.items()
            if isinstance(module, nn.Conv2d | nn.Linear) and name not in groups
        ]
    }
    make, importance = PRUNERS[method.removesuffix(GLOBAL)]
    example = torch.zeros(skeleton.input_shape)
    if method.endswith(GLOBAL):
        kept = _globally(make(small, example, importance, **options), names, ratio)
    else:
        options |= {
            "pruning_ratio_dict": {
                modules[name]: min(ratio, 1 - ROUND_TO / group.channels)
                for name, group in groups.items()
            },
            "round_to": ROUND_TO,
        }
        kept = _locally(make(small, example, importance, **options), names, groups)
    return Plan(skeleton.sha256, kept)


def _locally(
    pruner: Any, names: dict[int, str], groups: dict[str, ChannelGroup]
) -> dict[str, tuple[int, ...]]:
    """What the pruner keeps of each layer, pruned alone."""
    gone: dict[str, set[int]] = {name: set() for name in groups}
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            name = names.get(id(dependency.target.module))
            if name and dependency.handler == torch_pruning.prune_conv_out_channels:
                gone[name] |= set(indices)
        group.prune()
    return {
        name: tuple(sorted(set(range(group.channels)) - gone[name]))
        for name, group in groups.items()
    }


def _globally(pruner: Any, names: dict[int, str], ratio: float) -> dict[str, tuple[int, ...]]:
    """The best of all channels, by the pruner's scores, of each layer a multiple of ROUND_TO."""
    scores: dict[str, NDArray[np.float64]] = {}
    for group in pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers):
        if name := names.get(id(group[0].dep.target.module)):
            scores[name] = pruner.estimate_importance(group).double().numpy()
    threshold = np.quantile(np.concatenate(list(scores.values())), ratio)
    kept = {}
    for name in names.values():
        of = scores[name]
        count = max(ROUND_TO, -(-int((of > threshold).sum()) // ROUND_TO) * ROUND_TO)
        kept[name] = tuple(sorted(int(i) for i in np.argsort(-of, kind="stable")[:count]))
    return kept


def plan_at(run: Path, model: nn.Module, method: str, aim: float) -> tuple[Plan, dict[str, Any]]:
    """The least pruning whose measured latency is at most `aim` times the dense one."""
    skeleton = Skeleton.open(run / "trace")
    target = load_target("ort-cpu", TargetOptions(threads=1))
    anchor = run / "calibrate" / f"anchor{target.engine_suffix}"
    bench = Bench(target, Slicer(skeleton), anchor)
    low, high, tried = 0.0, 1.0, []
    best = pruned_plan(model, skeleton, method, high)
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        plan = pruned_plan(model, skeleton, method, ratio)
        measured = bench.compare(plan.widths(), precision=0.006).ratio
        tried.append({"pruning_ratio": ratio, "latency_ratio": measured})
        if measured <= aim:
            high, best = ratio, plan
        else:
            low = ratio
    return best, {"method": method, "aim": aim, "tried": tried}
