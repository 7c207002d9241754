"""A short gated training under a budget of multiply-adds, in one process or several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from calibration.counts import Count
from pipeline.data.memory import InMemoryImages
from pipeline.pruning.constraint import Goal
from pipeline.pruning.groups import trace
from pipeline.pruning.select import Selector, priced
from pipeline.pruning.wgates import BudgetMode, GateSettings, WGates
from pipeline.training import Recipe, Regime, Trainer, Upkeep

SETTINGS = GateSettings(gate_lr=1.0, weight_lr=0.02, weight_decay=1e-4, dual_lr=0.8)
SHARE = 0.6  # of the multiply-adds
MULTIPLE = 4


class TwoConvs(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.linear = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        out = torch.relu(self.norm1(self.conv1(images)))
        out = torch.relu(self.norm2(self.conv2(out)))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


class Silent:
    def progress(self, label: str, done: int, total: int, note: str = "") -> None: ...

    def say(self, text: str) -> None: ...


def learned_plan(
    fabric: Fabric,
    data: InMemoryImages,
    folder: Path,
    mode: BudgetMode = "projection",
    upkeep: Upkeep = Upkeep(),  # noqa: B008
) -> dict[str, Any]:
    """Kept channels after six epochs, and the number of open gates; only the first has a goal."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TwoConvs(len(data.card.classes))
    skeleton = trace(model.eval(), data.images("train", 2)[0])
    count = Count.macs(skeleton)
    most = int(SHARE * count.at(skeleton.groups.full()))
    wgates = WGates(model, skeleton, replace(SETTINGS, mode=mode), multiple=MULTIPLE)
    recipe = Recipe("gates", 6, 16, 0, "", Regime(channels_last=True))
    trainer = Trainer(fabric, data, folder, Silent(), recipe, upkeep)
    selector = Selector(skeleton, priced(count), MULTIPLE)
    goal = Goal(lambda: count, selector, most) if fabric.is_global_zero else None
    wgates.solve(trainer, goal)
    plan = wgates.propose(selector, most)
    return {"plan": plan.to_json(), "open": list(wgates.open_widths())}
