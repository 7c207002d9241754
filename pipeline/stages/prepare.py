"""prepare: model, weights and data fit each other; trains the dense network if none is given."""

from __future__ import annotations

from dataclasses import asdict

from torch import nn

from pipeline.evaluation import top1
from pipeline.files import write_atomically
from pipeline.models.weights import load_weights, save_weights
from pipeline.options import PrepareOptions
from pipeline.run import Context
from pipeline.stages.common import (
    DATA_CARD,
    bare_model,
    data_of,
    fabric_of,
    recipe_of,
    train_to_best,
)
from pipeline.stages.company import company
from pipeline.training import Epoch, decayed, sgd

EPOCHS_FROM_SCRATCH = 16


def execute(context: Context) -> None:
    with company(context):
        _execute(context)


def _execute(context: Context) -> None:
    options = context.options(PrepareOptions)
    data, fabric = data_of(context), fabric_of(context.run)
    for name in data.card.skipped[:5]:
        context.reporter.say(f"skipped a corrupt image: {name}")
    model = bare_model(context)
    if options.weights is not None:
        load_weights(model, options.weights)
    model.to(fabric.device)
    epochs = options.dense_epochs
    if epochs is None:
        epochs = 0 if options.weights is not None else EPOCHS_FROM_SCRATCH
    history = _train(context, model, epochs)
    save_weights(model, context.partial / "dense.safetensors")
    write_atomically(context.partial / DATA_CARD, data.card.to_json().encode())
    context.write_json(
        "prepare.json",
        {
            "model": options.model,
            "data": options.data,
            "trained": epochs > 0,
            "epochs": epochs,
            "top1": {
                "val": asdict(top1(model, data, "val", fabric)),
                "test": asdict(top1(model, data, "test", fabric)),
            },
            "history": [epoch.to_json() for epoch in history],
        },
    )


def _train(context: Context, model: nn.Module, epochs: int) -> list[Epoch]:
    if epochs == 0:
        return []
    options = context.options(PrepareOptions)
    loss = nn.CrossEntropyLoss()
    return train_to_best(
        context,
        model,
        recipe_of(context, model, "dense", epochs, "lower --dense-lr"),
        sgd(decayed(model, options.dense_lr, options.weight_decay)),
        lambda images, labels: loss(model(images), labels),
    )
