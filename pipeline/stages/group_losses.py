"""What the training loss says of each group, asked once before anything is pruned."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from calibration.widths import Plan, WidthVector
from pipeline.evaluation import batch_statistics
from pipeline.files import digest, json_in
from pipeline.layout import channels_last
from pipeline.memory import LEAST_PART, memory_told, with_memory
from pipeline.options import PrepareOptions, PruneOptions
from pipeline.pruning.masking import masked
from pipeline.pruning.select import Selector
from pipeline.pruning.together import asked, candidates, variants
from pipeline.pruning.worth import Losses, Scores, Worth, measure_losses
from pipeline.run import RECORD, Context
from pipeline.stages.common import data_of, fabric_of, lies_channels_last
from pipeline.stages.short_training import losses_after_steps

LOSSES, TOGETHER = "group-losses.json", "plan-losses.json"
ASKED_OF = "asked_of"  # the digest of what they are losses of

Found = TypeVar("Found")
Answer = dict[str, Any]  # of a plan: variant, loss, kept; of some: fits, after_steps
Fits = Callable[[Plan], bool]  # whether a plan, measured, meets the budget and uses it
# plans that are trained for a few steps each, and those that are measured at most to find them
TRAINED, MEASURED = 4, 8


def wants_losses(options: PruneOptions) -> bool:
    """Whether --worth asks for losses, and the method chooses widths by worth at all."""
    chooses = options.plan is None and options.method not in ("uniform", "random")
    return options.worth == "loss" and chooses


@dataclass(frozen=True)
class Subject:
    """The dense model that is asked, cut to the plans that a selector and scores lead to."""

    context: Context
    model: nn.Module
    selector: Selector
    scores: Scores

    def plan(self, widths: WidthVector) -> Plan:
        """The best-scored channels at these widths."""
        return self.selector.plan(self.scores, widths.kept)

    def digest(self, allowed: Mapping[str, Sequence[int]]) -> str:
        """SHA-256 of all that losses at these widths depend on."""
        run = self.context.run
        read = [digest(run.folder / stage / RECORD) for stage in ("prepare", "trace")]
        images = self.context.options(PruneOptions).worth_images
        widths = {name: [*map(int, kept)] for name, kept in sorted(allowed.items())}
        found = hashlib.sha256(json.dumps([read, images, widths]).encode())
        for name in widths:
            found.update(self.scores[name].tobytes())
        return found.hexdigest()


def group_losses(subject: Subject) -> Losses:
    """The dense model's losses, its best-scored channels kept.

    A resumed run reads them back, and so does one whose last plan was for another budget: which one
    is asked for makes no difference to them.
    """
    context, selector = subject.context, subject.selector
    groups = selector.skeleton.groups
    allowed = {group.name: selector.allowed(group) for group in groups.prunable}
    asked_of = subject.digest(allowed)

    def find() -> dict[str, Any]:
        earlier = json_in(context.run.folder / context.stage.name / LOSSES)
        if isinstance(earlier, dict) and earlier.get(ASKED_OF) == asked_of:
            return earlier
        classes = len(data_of(context).card.classes)
        found = _probed(
            subject,
            lambda loss: measure_losses(
                groups,
                allowed,
                loss,
                classes=classes,
                on_done=functools.partial(context.reporter.progress, "groups' losses"),
            ),
        )
        return {ASKED_OF: asked_of, **found.to_json()}

    return Losses.from_json(context.remembered(LOSSES, find))


def weighed_together(subject: Subject, aim: float, fits: Fits) -> tuple[Worth, bool]:
    """The selector's worth, or a variant of it whose plan for `aim` loses less as a whole.

    And whether that plan is known to fit. A few steps of training decide between the best that do.
    A resumed run reads back which it was.
    """
    context, measured = subject.context, subject.selector.measured
    groups = subject.selector.skeleton.groups
    assert measured is not None
    worths = variants(measured, groups, context.options(PruneOptions).worth_plans)
    answers = context.remembered(
        TOGETHER,
        lambda: {"groups": groups.names, "plans": _asked(subject, aim, worths, fits)},
    )["plans"]
    best = min(answers, key=_lost, default=None)
    if best is None:  # there is no plan whose loss is a number
        return measured, False
    first = next((answer for answer in answers if answer["variant"] == 0), None)
    context.run.event("plans' losses", plans=len(answers), best=best, first=first)
    context.reporter.say(
        f"plans' losses, of {len(answers)} as a whole: best {_told(best)}"
        + (f", by single losses {_told(first)}" if first else "")
    )
    return worths[int(best["variant"])], best.get("fits", False)


def _asked(subject: Subject, aim: float, worths: Sequence[Worth], fits: Fits) -> list[Answer]:
    """Each plan that a worth leads to and its loss; of the best also that after a few steps."""
    context, selector = subject.context, subject.selector
    progress = context.reporter.progress
    told = functools.partial(progress, "plans to ask")
    plans = candidates(selector, subject.scores, aim, worths, told)
    found = _probed(
        subject, lambda loss: asked(plans, loss, functools.partial(progress, "plans' losses"))
    )
    answers: dict[WidthVector, Answer] = {
        widths: {"variant": plans[widths], "loss": loss, "kept": widths.kept}
        for widths, loss in found.items()
    }
    if context.options(PruneOptions).worth_steps:
        best = _to_train(answers, lambda widths: fits(subject.plan(widths)))
        losses = losses_after_steps(
            *(context, subject.model, selector.skeleton.groups),
            [subject.plan(widths) for widths in best],
            functools.partial(progress, "plans trained for a few steps"),
        )
        for widths, loss in zip(best, losses, strict=True):
            answers[widths] |= {"after_steps": loss} if math.isfinite(loss) else {}
    return list(answers.values())


def _to_train(
    answers: Mapping[WidthVector, Answer], fits: Callable[[WidthVector], bool]
) -> list[WidthVector]:
    """The best that fit: one that the closed loop would give up need not win.

    If none does, the best: what the closed loop then turns to is near them.
    """
    best_first = sorted(answers, key=lambda widths: answers[widths]["loss"])
    fitting: dict[WidthVector, bool] = {}
    for widths in best_first[:MEASURED]:
        if sum(fitting.values()) == TRAINED:
            break
        fitting[widths] = fits(widths)
    # how quiet the machine can be is known better now: asked again, what is in doubt is timed again
    fitting = {widths: fits(widths) for widths in fitting}
    for widths, does in fitting.items():
        answers[widths]["fits"] = does
    found = [widths for widths, does in fitting.items() if does]
    return found[:TRAINED] or best_first[:TRAINED]


def _lost(answer: Answer) -> tuple[float, float]:
    """What decides: the loss after a few steps where there is one."""
    return answer.get("after_steps", math.inf), answer["loss"]


def _told(answer: Answer) -> str:
    after = answer.get("after_steps")
    return f"{answer['loss']:.3f}" + ("" if after is None else f" ({after:.3f} after a few steps)")


def _probed(subject: Subject, ask: Callable[[Callable[[WidthVector], float]], Found]) -> Found:
    """What `ask` finds with a function that gives the training loss at some widths."""
    context, model, groups = subject.context, subject.model, subject.selector.skeleton.groups
    data, fabric = data_of(context), fabric_of(context.run)
    training = context.run.options("prepare", PrepareOptions)
    model.to(fabric.device)
    images, labels = (
        part.to(fabric.device)
        for part in data.images("train", context.options(PruneOptions).worth_images)
    )

    def measured(at_once: int) -> Found:
        batches = -(-len(images) // at_once)
        parts = list(zip(images.chunk(batches), labels.chunk(batches), strict=True))

        def loss(widths: WidthVector) -> float:
            plan = subject.plan(widths)
            with torch.no_grad(), fabric.autocast(), masked(model, groups, plan):
                lost = [nn.functional.cross_entropy(model(x), y, reduction="sum") for x, y in parts]
            return float(torch.stack(lost).sum()) / len(images)

        return ask(loss)

    last = lies_channels_last(context, model)
    with batch_statistics(model), channels_last(model, last), memory_told("for groups' losses"):
        return with_memory(measured, training.micro_batch or training.train_batch, LEAST_PART)[0]
