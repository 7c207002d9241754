"""Plans by torch-pruning's own pruners, at a measured latency: baselines for the accuracy study.

`tp-l1`: the L1 norm of each filter; `tp-group-norm`: GroupNormPruner, without its sparse training.
Both take the same ratio from every layer, as its examples do, down to 8 channels: it rounds widths
down, and leaves a layer whole that would be rounded to nothing. Only the groups that the skeleton
lets be pruned are: the others' layers are ignored. Needs `pip install torch-pruning`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from torch import nn

from calibration.candidates import Slicer
from calibration.measure import Bench
from calibration.skeleton import Skeleton
from calibration.widths import Plan
from targets import load_target
from targets.base import TargetOptions

ROUND_TO = 8  # channels, as ours
HALVINGS = 7
METHODS = ("tp-l1", "tp-group-norm")


def pruned_plan(model: nn.Module, skeleton: Skeleton, method: str, ratio: float) -> Plan:
    """What the pruner keeps at a pruning ratio."""
    small = copy.deepcopy(model).eval()
    modules = dict(small.named_modules())
    groups = {group.name: group for group in skeleton.groups.prunable}
    ignored = [
        module
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d | nn.Linear) and name not in groups
    ]
    options: dict[str, Any] = {
        "pruning_ratio_dict": {
            modules[name]: min(ratio, 1 - ROUND_TO / group.channels)
            for name, group in groups.items()
        },
        "ignored_layers": ignored,
        "round_to": ROUND_TO,
    }
    example = torch.zeros(skeleton.input_shape)
    magnitude = torch_pruning.importance.GroupMagnitudeImportance
    if method == "tp-l1":
        importance = magnitude(p=1, group_reduction="first")
        pruner = torch_pruning.pruner.BasePruner(small, example, importance, **options)
    else:
        pruner = torch_pruning.pruner.GroupNormPruner(small, example, magnitude(p=2), **options)
    gone: dict[str, set[int]] = {name: set() for name in groups}
    names = {id(modules[name]): name for name in groups}
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            name = names.get(id(dependency.target.module))
            if name and dependency.handler == torch_pruning.prune_conv_out_channels:
                gone[name] |= set(indices)
        group.prune()
    kept = {
        name: tuple(sorted(set(range(group.channels)) - gone[name]))
        for name, group in groups.items()
    }
    return Plan(skeleton.sha256, kept)


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
