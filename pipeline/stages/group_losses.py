"""What the training loss says of each group, asked once before anything is pruned."""

from __future__ import annotations

import json

import torch
from torch import nn

from calibration.widths import WidthVector
from pipeline.evaluation import batch_statistics
from pipeline.memory import LEAST_PART, memory_told, with_memory
from pipeline.options import PrepareOptions, PruneOptions
from pipeline.pruning.masking import masked
from pipeline.pruning.select import Selector
from pipeline.pruning.worth import Losses, Scores, measure_losses
from pipeline.run import Context
from pipeline.stages.common import data_of, fabric_of

LOSSES = "group-losses.json"


def wants_losses(options: PruneOptions) -> bool:
    """Whether --worth asks for losses, and the method chooses widths by worth at all."""
    chooses = options.plan is None and options.method not in ("uniform", "random")
    return options.worth == "loss" and chooses


def group_losses(context: Context, model: nn.Module, selector: Selector, scores: Scores) -> Losses:
    """The dense model's losses, its best-scored channels kept; a resumed run reads them back."""
    path = context.partial / LOSSES
    if not path.exists():
        context.write_json(LOSSES, _measured(context, model, selector, scores).to_json())
    return Losses.from_json(json.loads(path.read_text(encoding="utf-8")))


def _measured(context: Context, model: nn.Module, selector: Selector, scores: Scores) -> Losses:
    groups, data, fabric = selector.skeleton.groups, data_of(context), fabric_of(context.run)
    training = context.run.options("prepare", PrepareOptions)
    model.to(fabric.device)
    images, labels = (
        part.to(fabric.device)
        for part in data.images("train", context.options(PruneOptions).worth_images)
    )

    def measured(at_once: int) -> Losses:
        batches = -(-len(images) // at_once)
        parts = list(zip(images.chunk(batches), labels.chunk(batches), strict=True))

        def loss(widths: WidthVector) -> float:
            plan = selector.plan(scores, widths.kept)
            with torch.no_grad(), fabric.autocast(), masked(model, groups, plan):
                lost = [nn.functional.cross_entropy(model(x), y, reduction="sum") for x, y in parts]
            return float(torch.stack(lost).sum()) / len(images)

        return measure_losses(
            groups,
            {group.name: selector.allowed(group) for group in groups.prunable},
            loss,
            classes=len(data.card.classes),
            on_done=lambda done, total: context.reporter.progress("groups' losses", done, total),
        )

    with batch_statistics(model), memory_told("for groups' losses"):
        return with_memory(measured, training.micro_batch or training.train_batch, LEAST_PART)[0]
