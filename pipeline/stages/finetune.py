"""finetune: cut the network for real, then recover accuracy on what is left."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.evaluation import recalibrate_batch_norm, top1
from pipeline.models.weights import save_weights
from pipeline.options import FinetuneOptions, PrepareOptions
from pipeline.pruning.surgery import shrink
from pipeline.run import Context
from pipeline.stages.common import (
    bare_model,
    data_of,
    dense_model,
    fabric_of,
    plan_of,
    recipe_of,
    skeleton_of,
    train_to_best,
)
from pipeline.stages.company import company
from pipeline.training import Epoch, Recipe, decayed, distillation, sgd


def execute(context: Context) -> None:
    with company(context):
        _execute(context)


def _execute(context: Context) -> None:
    data, fabric = data_of(context), fabric_of(context.run)
    prepare = context.run.options("prepare", PrepareOptions)
    model = cut_model(context).to(fabric.device)
    recalibrate_batch_norm(model, data, fabric, batch=prepare.train_batch)
    pruned = top1(model, data, "test", fabric)
    save_weights(model, context.partial / "pruned.safetensors")
    history = _train(context, model)
    save_weights(model, context.partial / "weights.safetensors")
    context.write_json(
        "finetune.json",
        {
            "history": [epoch.to_json() for epoch in history],
            "top1": {
                "pruned": asdict(pruned),
                "finetuned": asdict(top1(model, data, "test", fabric)),
            },
        },
    )


def cut_model(context: Context) -> nn.Module:
    """The gated checkpoint, physically narrowed by the plan."""
    tensors = load_file(context.run.read("prune", "gated.safetensors"))
    model = bare_model(context)
    model.load_state_dict(
        {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    )
    return shrink(model, skeleton_of(context.run), plan_of(context.run))


def going_on(recipe: Recipe) -> Recipe:
    """Without a warm-up: prune's training ended at a rate that held, and this lets it fall."""
    return replace(recipe, regime=replace(recipe.regime, warmup=0.0))


def _train(context: Context, model: nn.Module) -> list[Epoch]:
    options = context.options(FinetuneOptions)
    prepare = context.run.options("prepare", PrepareOptions)
    device = fabric_of(context.run).device
    teacher = dense_model(context).to(device) if options.distill > 0 else None

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images)
        task = nn.functional.cross_entropy(logits, labels)
        if teacher is None:
            return task
        with torch.no_grad():
            target = teacher(images)
        return (1 - options.distill) * task + options.distill * distillation(logits, target)

    epochs, fix = options.finetune_epochs, "lower --finetune-lr"
    recipe = recipe_of(context, model, "finetune", epochs, fix)
    if context.run.document("prune", "prune.json")["history"]:
        recipe = going_on(recipe)
    return train_to_best(
        context,
        model,
        replace(recipe, seed=prepare.seed + 1),
        sgd(decayed(model, options.finetune_lr, prepare.weight_decay)),
        loss,
    )
