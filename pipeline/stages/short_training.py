"""Plans that are trained for a few steps before one of them is chosen.

Where much is cut, the loss of the cut network lies near that of guessing whatever the plan is: what
a few steps mend and what they cannot looks alike. As NetAdapt does with its proposals (Yang et al.,
arXiv 1804.03230), plans are trained for a few steps each, on the same images; the weights are not
kept.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import chain, count, islice
from typing import cast

import torch
from torch import nn

from calibration.widths import ChannelGroups, Plan
from pipeline.data.base import ImageData
from pipeline.layout import channels_last
from pipeline.memory import LEAST_PART, memory_told, with_memory
from pipeline.options import PrepareOptions, PruneOptions
from pipeline.pruning.masking import masked
from pipeline.run import Context
from pipeline.stages.common import data_of, fabric_of, lies_channels_last
from pipeline.training import decayed, set_rates, sgd


def losses_after_steps(
    context: Context,
    model: nn.Module,
    groups: ChannelGroups,
    plans: Sequence[Plan],
    on_done: Callable[[int, int], None],
) -> list[float]:
    """The mean training loss of each over the last quarter of --worth-steps; inf if it diverged."""
    training = context.run.options("prepare", PrepareOptions)
    data = data_of(context).on(fabric_of(context.run).device)
    last = lies_channels_last(context, model)

    def losses(at_once: int) -> list[float]:
        found = []
        for number, plan in enumerate(plans, 1):
            trained = copy.deepcopy(model)
            with masked(trained, groups, plan), channels_last(trained, last):
                found.append(_trained(context, trained, data, at_once))
            on_done(number, len(plans))
        return found

    with memory_told("for plans' losses"):
        return with_memory(losses, training.micro_batch or training.train_batch, LEAST_PART)[0]


def _trained(context: Context, model: nn.Module, data: ImageData, batch: int) -> float:
    """Train the model for a few steps, the rate falling to zero; each process by itself."""
    training = context.run.options("prepare", PrepareOptions)
    options, fabric = context.options(PruneOptions), fabric_of(context.run)
    steps, drawing = options.worth_steps, [fabric.device] if fabric.device.type == "cuda" else []
    optimizer = sgd(decayed(model.train(), options.weight_lr, training.weight_decay))
    # loss scaling of 16-mixed is done in the wrapper's step
    wrapped = cast("torch.optim.Optimizer", fabric.setup_optimizers(optimizer))
    epochs = (data.train_batches(batch, seed=training.seed, epoch=epoch) for epoch in count())
    found = []
    with torch.random.fork_rng(drawing):
        torch.manual_seed(training.seed)  # of dropout
        for step, (images, labels) in enumerate(islice(chain.from_iterable(epochs), steps)):
            set_rates(optimizer, step / steps, training.warmup)
            wrapped.zero_grad()
            images, labels = images.to(fabric.device), labels.to(fabric.device)
            with fabric.autocast():
                loss = nn.functional.cross_entropy(model(images), labels)
            fabric.backward(loss)
            wrapped.step()
            found.append(loss.detach())
    last = float(torch.stack(found[3 * len(found) // 4 :]).mean())
    return last if math.isfinite(last) else math.inf
