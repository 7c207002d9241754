"""What the training loss says of each group, asked once before anything is pruned."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from calibration.widths import WidthVector
from pipeline.evaluation import batch_statistics
from pipeline.memory import LEAST_PART, memory_told, with_memory
from pipeline.options import PrepareOptions, PruneOptions
from pipeline.pruning.masking import masked
from pipeline.pruning.select import Selector
from pipeline.pruning.together import asked, candidates, variants
from pipeline.pruning.worth import Losses, Scores, Worth, measure_losses
from pipeline.run import Context
from pipeline.stages.common import data_of, fabric_of

LOSSES, TOGETHER = "group-losses.json", "plan-losses.json"

Answer = TypeVar("Answer")


def wants_losses(options: PruneOptions) -> bool:
    """Whether --worth asks for losses, and the method chooses widths by worth at all."""
    chooses = options.plan is None and options.method not in ("uniform", "random")
    return options.worth == "loss" and chooses


def group_losses(context: Context, model: nn.Module, selector: Selector, scores: Scores) -> Losses:
    """The dense model's losses, its best-scored channels kept; a resumed run reads them back."""
    path, groups = context.partial / LOSSES, selector.skeleton.groups
    if not path.exists():
        classes = len(data_of(context).card.classes)
        allowed = {group.name: selector.allowed(group) for group in groups.prunable}
        found = _probed(
            *(context, model, selector, scores),
            lambda loss: measure_losses(
                groups,
                allowed,
                loss,
                classes=classes,
                on_done=functools.partial(context.reporter.progress, "groups' losses"),
            ),
        )
        context.write_json(LOSSES, found.to_json())
    return Losses.from_json(json.loads(path.read_text(encoding="utf-8")))


def weighed_together(
    context: Context, model: nn.Module, selector: Selector, scores: Scores, aim: float
) -> Worth:
    """The selector's worth, or a variant of it whose plan for `aim` loses less as a whole.

    A resumed run reads back which.
    """
    path, progress = context.partial / TOGETHER, context.reporter.progress
    assert selector.measured is not None
    groups, count = selector.skeleton.groups, context.options(PruneOptions).worth_plans
    worths = variants(selector.measured, groups, count)
    if not path.exists():
        choosing = functools.partial(progress, "plans to ask")
        plans = candidates(selector, scores, aim, worths, choosing)
        found = _probed(
            *(context, model, selector, scores),
            lambda loss: asked(plans, loss, functools.partial(progress, "plans' losses")),
        )
        answers = [
            {"variant": plans[widths], "loss": loss, "kept": widths.kept}
            for widths, loss in found.items()
        ]
        context.write_json(TOGETHER, {"groups": groups.names, "plans": answers})
    answers = json.loads(path.read_text(encoding="utf-8"))["plans"]
    losses = {answer["variant"]: answer["loss"] for answer in answers}
    # the first is the worth itself; none: there is no plan whose loss is a number
    best = min(losses, key=lambda variant: losses[variant], default=0)
    told = {"best": losses.get(best), "by single losses": losses.get(0)}
    context.run.event("plans' losses", plans=len(losses), variant=best, **told)
    context.reporter.say(
        f"plans' losses, of {len(losses)} as a whole: "
        + ", ".join(f"{which} {loss:.3f}" for which, loss in told.items() if loss is not None)
    )
    return worths[best]


def _probed(
    context: Context,
    model: nn.Module,
    selector: Selector,
    scores: Scores,
    ask: Callable[[Callable[[WidthVector], float]], Answer],
) -> Answer:
    """What `ask` finds with a function that gives the training loss at some widths."""
    groups, data, fabric = selector.skeleton.groups, data_of(context), fabric_of(context.run)
    training = context.run.options("prepare", PrepareOptions)
    model.to(fabric.device)
    images, labels = (
        part.to(fabric.device)
        for part in data.images("train", context.options(PruneOptions).worth_images)
    )

    def measured(at_once: int) -> Answer:
        batches = -(-len(images) // at_once)
        parts = list(zip(images.chunk(batches), labels.chunk(batches), strict=True))

        def loss(widths: WidthVector) -> float:
            plan = selector.plan(scores, widths.kept)
            with torch.no_grad(), fabric.autocast(), masked(model, groups, plan):
                lost = [nn.functional.cross_entropy(model(x), y, reduction="sum") for x, y in parts]
            return float(torch.stack(lost).sum()) / len(images)

        return ask(loss)

    with batch_statistics(model), memory_told("for groups' losses"):
        return with_memory(measured, training.micro_batch or training.train_batch, LEAST_PART)[0]
