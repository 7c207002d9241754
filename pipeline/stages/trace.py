"""trace: which layers share a width, what cannot be pruned and why, what is reachable at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from calibration.cost import NetworkCost, parameter_count
from calibration.skeleton import Skeleton
from pipeline.errors import ModelError
from pipeline.options import TraceOptions
from pipeline.pruning.groups import trace
from pipeline.pruning.removal import with_removable_branches
from pipeline.run import Context
from pipeline.stages.common import data_of, dense_model


def execute(context: Context) -> None:
    options = context.options(TraceOptions)
    shape = data_of(context).card.image_shape
    example = torch.zeros(options.batch, *shape)
    model = dense_model(context)
    skeleton = trace(model, example, residual=options.residual)
    if not skeleton.groups.prunable:
        reasons = sorted({str(group.frozen) for group in skeleton.groups.every})
        raise ModelError(
            f"no layer of this model can be pruned: {'; '.join(reasons)}",
            fix="give a convolutional network whose layers are analysed",
        )
    refused: Mapping[str, str] = {}
    if options.remove_blocks:
        skeleton, refused = with_removable_branches(model, skeleton)
        context.reporter.say(
            f"trace: {len(skeleton.groups.branches)} residual branches may go as a whole, "
            f"{len(refused)} must stay"
        )
    skeleton.save(context.partial)
    feasibility = _feasibility(skeleton, refused)
    context.write_json("feasibility.json", feasibility)
    prunable, every = len(skeleton.groups.prunable), len(skeleton.groups.every)
    context.reporter.say(
        f"trace: {prunable} of {every} channel groups can be pruned; at minimum widths "
        f"{feasibility['floor_macs'] / feasibility['macs']:.1%} of the MACs and "
        f"{feasibility['floor_params'] / feasibility['params']:.1%} of the parameters remain"
    )


def _feasibility(skeleton: Skeleton, refused: Mapping[str, str]) -> dict[str, Any]:
    """Counts at the narrowest widths of any target; latency joins in calibrate."""
    groups, cost = skeleton.groups, NetworkCost.of(skeleton)
    full, floor = groups.full(), groups.floor(1)
    least = dict(zip(floor.groups, floor.kept, strict=True))
    return {
        "macs": cost.macs(full),
        "params": parameter_count(skeleton, full),
        "floor_macs": cost.macs(floor),
        "floor_params": parameter_count(skeleton, floor),
        "groups": [
            {
                "name": group.name,
                "channels": group.channels,
                "kind": group.kind,
                "frozen": group.frozen,
                "floor": least.get(group.name, group.channels),
            }
            for group in groups.every
        ],
        "branches": [
            {"name": branch.name, "groups": list(branch.groups)} for branch in groups.branches
        ],
        "kept_branches": [{"group": name, "reason": why} for name, why in refused.items()],
    }
