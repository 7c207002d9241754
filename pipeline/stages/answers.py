"""What each step of the line says to every test image: torch, ONNX, and the shipped engine."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load
from torch import Tensor, nn

from pipeline.attribution import Labels, changed
from pipeline.data.base import DataCard
from pipeline.hanging import together
from pipeline.options import TraceOptions
from pipeline.pruning.surgery import shrink
from pipeline.reference import SMALLEST
from pipeline.run import Context
from pipeline.serving import target_of
from pipeline.stages.common import (
    bare_model,
    compact_model,
    data_of,
    dense_model,
    fabric_of,
    plan_of,
    skeleton_of,
)
from pipeline.stages.watchdog import watch_of
from pipeline.unfused import run_onnx

PRUNED = "pruned.safetensors"  # of finetune: the cut network before it learned again
SHOWN = 12  # images of a step whose label changed
THUMBNAIL = 96  # pixels

Logits = NDArray[np.float32]  # (n, classes)
Answer = Callable[[Tensor], Logits]


@dataclass
class _Parity:
    """Largest differences of logits so far: those of ImageNet are not kept."""

    worst: float = 0.0
    largest: float = 0.0

    def add(self, expected: Logits, got: Logits) -> None:
        # unlike max(), np.maximum does not drop a NaN
        self.worst = float(np.maximum(self.worst, np.abs(expected - got).max()))
        self.largest = float(np.maximum(self.largest, np.abs(expected).max()))


@dataclass(frozen=True)
class Answers:
    """Labels that each step gives to the test images, by step, and their true ones, (n,) each."""

    predicted: Mapping[str, Labels]
    labels: Labels
    max_abs: float  # largest difference of logits, engine to torch
    largest: float  # largest logit of torch

    def parity(self) -> dict[str, Any]:
        """The engine against torch: largest differences, and labels that flipped."""
        return {
            "max_abs": self.max_abs,
            "max_rel": self.max_abs / (self.largest or SMALLEST),
            "label_flips": len(changed(self.predicted, "finetuned", "engine")),
            "n": len(self.labels),
        }

    def top1(self, step: str) -> float:
        return float((self.predicted[step] == self.labels).mean())


def answers(context: Context) -> Answers:
    """Every test image through every step that is there, one batch at a time."""
    data, run = data_of(context), context.run
    batch = run.options("trace", TraceOptions).batch
    step = together(batch)
    found: dict[str, list[Labels]] = {}
    parity, watch = _Parity(), watch_of(context)
    engine_file = run.read("build", run.document("build", "build.json")["engine"])
    with ExitStack() as stack:
        engine = stack.enter_context(watch.load(target_of(run), engine_file))
        stack.enter_context(torch.no_grad())
        ask: dict[str, Answer] = _askable(context, batch)
        ask["engine"] = lambda images: watch.infer(engine, images.numpy())
        for done, (images, _) in enumerate(data.batches("test", step), 1):
            logits = {name: answer(images) for name, answer in ask.items()}
            parity.add(logits["finetuned"], logits["engine"])
            for name, values in logits.items():
                found.setdefault(name, []).append(values.argmax(1).astype(np.int64))
            total = -(-data.size("test") // step)
            context.reporter.progress("accuracy through the engine", done, total)
    labels = data.labels("test").numpy()
    predicted = {name: np.concatenate(rows) for name, rows in found.items()}
    return Answers(predicted, labels, parity.worst, parity.largest)


def _askable(context: Context, batch: int) -> dict[str, Answer]:
    """Each step but the engine; dense and pruned, which parity does not rest on, on the device."""
    run, compact = context.run, compact_model(context)
    onnx = run.read("export", "model.onnx").read_bytes()
    return {
        "dense": _on_device(context, dense_model(context)),
        **_pruned(context),
        "finetuned": lambda images: compact(images).numpy(),
        "onnx": lambda images: padded_onnx(onnx, images, batch),
    }


def _pruned(context: Context) -> dict[str, Answer]:
    """The cut network before fine-tuning; nothing in a run of a version that did not keep it."""
    if not (context.run.folder / "finetune" / PRUNED).exists():
        return {}
    model = shrink(bare_model(context), skeleton_of(context.run), plan_of(context.run))
    model.load_state_dict(load(context.run.read("finetune", PRUNED).read_bytes()))
    return {"pruned": _on_device(context, model)}


def _on_device(context: Context, model: nn.Module) -> Answer:
    device = fabric_of(context.run).device
    still = model.to(device).eval()
    return lambda images: still(images.to(device)).float().cpu().numpy()


def padded_onnx(model: bytes, images: Tensor, batch: int) -> Logits:
    """Run a static graph on any number of images: the last batch is filled up with zeros."""
    missing = -len(images) % batch
    padding = images.new_zeros(missing, *images.shape[1:])
    return run_onnx(model, torch.cat([images, padding]).numpy())[: len(images)]


def flips(context: Context, found: Answers, before: str, after: str) -> dict[str, Any]:
    """The images whose label changed in one step: how many, and the first SHOWN with a picture."""
    indices = changed(found.predicted, before, after)
    data = data_of(context)
    shown = torch.from_numpy(indices[:SHOWN])
    images = data.take("test", shown) if len(shown) else torch.empty(0)
    return {
        "before": before,
        "after": after,
        "count": len(indices),
        "shown": [
            {
                "image": int(index),
                "label": data.card.classes[int(found.labels[index])],
                before: data.card.classes[int(found.predicted[before][index])],
                after: data.card.classes[int(found.predicted[after][index])],
                "png": picture(image, data.card),
            }
            for index, image in zip(indices[:SHOWN], images, strict=True)
        ],
    }


def picture(image: Tensor, card: DataCard) -> str:
    """A normalised (C, H, W) image as a PNG in base64, THUMBNAIL pixels at most; channels beyond
    three are left out."""
    shape = (-1, 1, 1)
    plain = image * torch.tensor(card.std).view(shape) + torch.tensor(card.mean).view(shape)
    pixels = (plain.clamp(0, 1) * 255).round().byte().numpy()
    kept = pixels[0] if len(pixels) < 3 else pixels[:3].transpose(1, 2, 0)
    small = Image.fromarray(np.ascontiguousarray(kept))
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    small.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()
