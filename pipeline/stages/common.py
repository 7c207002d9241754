"""What several stages read from the run: data, models, skeleton, target."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from calibration.skeleton import Skeleton
from calibration.widths import Plan
from pipeline.data.base import ImageData
from pipeline.data.decode import processors
from pipeline.data.sources import load_data
from pipeline.errors import DataError
from pipeline.evaluation import BestByValidation, top1
from pipeline.files import json_in, write_atomically
from pipeline.layout import is_faster, refusal
from pipeline.models.weights import load_weights
from pipeline.models.zoo import create_model, input_size_of
from pipeline.options import PrepareOptions
from pipeline.pruning.surgery import shrink
from pipeline.run import Context, Run
from pipeline.stages.company import FABRIC
from pipeline.stages.watchdog import watch_of
from pipeline.training import Epoch, Loss, Recipe, Regime, Trainer, Upkeep, make_fabric
from pipeline.training.processes import share_weights
from targets.base import BuildRecord, Images, Target
from targets.errors import BuildError

DATA_CARD = "data_card.json"  # which prepare writes
LAYOUT = "layout"  # in a run's memo


def data_of(context: Context) -> ImageData:
    """The run's images, decoded once a process."""
    options = context.run.options("prepare", PrepareOptions)
    key = (
        options.data,
        options.image_size,
        options.model,
        options.seed,
        options.train_limit,
        options.rand_augment,
    )
    if key not in context.run.memo:
        size = options.image_size or input_size_of(options.model)

        def progress(done: int, total: int) -> None:
            context.reporter.progress("decode images", done, total)

        context.run.memo[key] = load_data(
            options.data,
            image_size=size,
            seed=options.seed,
            limit=options.train_limit,
            rand_augment=options.rand_augment,
            workers=_workers(options),
            progress=progress,
        )
        _require_size(context.run.memo[key], options.image_size)
        _require_unchanged(context, context.run.memo[key])
    data = context.run.memo[key]
    assert isinstance(data, ImageData)
    return data


def _require_size(data: ImageData, asked: int | None) -> None:
    """DataError if a user's own data has another size than was asked for."""
    size = tuple(data.card.image_shape[1:])
    if asked is not None and size != (asked, asked):
        raise DataError(
            f"{data.card.name} gave {size[0]} x {size[1]} pixels, --image-size is {asked}",
            fix="let the factory accept image_size= and keep to it, or leave --image-size out",
        )


def _require_unchanged(context: Context, data: ImageData) -> None:
    """DataError if these are not the images that prepare saw: other ones may be held out now."""
    if context.stage.name == "prepare":
        return
    card = json_in(context.run.folder / "prepare" / DATA_CARD)
    if isinstance(card, dict) and card.get("digest") != data.card.digest:
        raise DataError(
            f"{data.card.name} is not what it was when prepare ran",
            fix=f"put it back, or remove {context.run.folder / 'prepare'} and run it all again",
        )


def _workers(options: PrepareOptions) -> int | None:
    """Processes that decode images, for each of those that train."""
    if options.loader_workers is None and options.devices > 1:
        return max(1, processors() // options.devices)
    return options.loader_workers


def fabric_of(run: Run) -> Fabric:
    """The training device, or this process's one of several inside `company`."""
    options = run.options("prepare", PrepareOptions)
    found = run.memo.get(FABRIC) or make_fabric(options.device, options.train_precision)
    assert isinstance(found, Fabric)
    return found


def lies_channels_last(context: Context, model: nn.Module) -> bool:
    """Whether this run's networks, one of which is given, are trained with channels innermost."""
    memo = context.run.memo
    if LAYOUT not in memo:
        memo[LAYOUT] = _wants_channels_last(context.run) and _takes_channels_last(context, model)
    return bool(memo[LAYOUT])


def _wants_channels_last(run: Run) -> bool:
    options = run.options("prepare", PrepareOptions)
    if options.channels_last is not None:
        return options.channels_last
    return is_faster(fabric_of(run).device, options.train_precision)


def _takes_channels_last(context: Context, model: nn.Module) -> bool:
    images, _ = data_of(context).images("train", 2)
    reason = refusal(model, images.to(next(model.parameters()).device))
    if reason:
        context.reporter.say(f"trains channels first, which is slower than last: {reason}")
    return not reason


def recipe_of(context: Context, model: nn.Module, label: str, epochs: int, fix: str) -> Recipe:
    """A training of the model in the run's regime."""
    options = context.run.options("prepare", PrepareOptions)
    regime = Regime(
        micro_batch=options.micro_batch,
        channels_last=lies_channels_last(context, model),
        ema=options.ema,
        warmup=options.warmup,
        label_smoothing=options.label_smoothing,
        mixup=options.mixup,
        cutmix=options.cutmix,
    )
    return Recipe(label, epochs, options.train_batch, options.seed, fix, regime)


def trainer_of(context: Context, recipe: Recipe) -> Trainer:
    """A trainer on the run's data whose checkpoints lie with the stage."""
    options = context.run.options("prepare", PrepareOptions)
    upkeep = Upkeep(options.checkpoint_minutes, options.logger)
    fabric, data = fabric_of(context.run), data_of(context)
    return Trainer(fabric, data, context.partial, context.reporter, recipe, upkeep)


def train_to_best(
    context: Context,
    model: nn.Module,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
) -> list[Epoch]:
    """Train; the model is then that of the epoch with the best validation top-1."""
    data, fabric = data_of(context), fabric_of(context.run)
    best = BestByValidation(
        model, context.partial / "best.safetensors", lambda: top1(model, data, "val", fabric)
    )
    history = trainer_of(context, recipe).train(model, optimizer, loss, evaluate=best)
    best.restore()
    if fabric.world_size > 1:  # the other processes' files do not outlive a resume
        share_weights(model)
    return history


def bare_model(context: Context) -> nn.Module:
    """The model as its factory makes it, seeded, with as many outputs as the data has classes."""
    options = context.run.options("prepare", PrepareOptions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return create_model(options.model, len(data_of(context).card.classes))


def dense_model(context: Context) -> nn.Module:
    model = bare_model(context)
    load_weights(model, context.run.read("prepare", "dense.safetensors"))
    return model.eval()


def skeleton_of(run: Run) -> Skeleton:
    run.read("trace", "groups.json")
    return Skeleton.open(run.folder / "trace")


def plan_of(run: Run) -> Plan:
    return Plan.from_json(run.document("prune", "plan.json"))


def compact_model(context: Context) -> nn.Module:
    """The fine-tuned, physically narrower model."""
    model = shrink(bare_model(context), skeleton_of(context.run), plan_of(context.run))
    load_weights(model, context.run.read("finetune", "weights.safetensors"))
    return model.eval()


def build_engine(
    context: Context,
    target: Target,
    onnx: bytes,
    out: Path,
    batches: Sequence[Images] = (),
    *,
    keep_fp32: Collection[str] = (),
) -> BuildRecord:
    """Build, and tell a full disk from a model that the runtime refused."""
    try:
        return watch_of(context).build(target, onnx, out, batches, keep_fp32=keep_fp32)
    except BuildError:
        # runtimes do not say why they cannot write; a file of that size says it
        write_atomically(out, bytes(2 * len(onnx)))
        out.unlink()
        raise
