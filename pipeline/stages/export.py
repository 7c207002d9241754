"""export: dense and compact model as static ONNX graphs, checked against torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import ParityError
from pipeline.export import export_onnx
from pipeline.files import write_atomically
from pipeline.options import ExportOptions, TraceOptions
from pipeline.run import Context
from pipeline.stages.common import compact_model, data_of, dense_model, plan_of, skeleton_of
from pipeline.stages.removed_nodes import named_as_before
from pipeline.unfused import run_onnx

PARITY_IMAGES = 64
COMPACT = "model.onnx"


def execute(context: Context) -> None:
    tolerance = context.options(ExportOptions).parity_tolerance
    parity = {
        "dense": _export(context, dense_model(context), "dense.onnx", tolerance),
        "pruned": _export(context, compact_model(context), COMPACT, tolerance),
    }
    context.write_json("export.json", {"parity": parity, "tolerance": tolerance})


def _export(
    context: Context, model: nn.Module, file: str, tolerance: float
) -> dict[str, float | int]:
    images = whole_batches(context)
    data = export_onnx(model, images[: context.run.options("trace", TraceOptions).batch])
    if file == COMPACT:
        data = named_as_before(data, skeleton_of(context.run), plan_of(context.run))
    with torch.no_grad():
        expected = model(images).numpy()
    difference = np.abs(run_onnx(data, images.numpy()) - expected)
    relative = float(difference.max() / np.abs(expected).max())
    if not relative <= tolerance:
        raise ParityError(
            f"{file}: ONNX and torch differ by {relative:.1e} of the largest logit",
            fix=f"allow it with --parity-tolerance, now {tolerance:g}, or report the model",
        )
    write_atomically(context.partial / file, data)
    return {"max_abs": float(difference.max()), "max_rel": relative, "n": len(images)}


def whole_batches(context: Context) -> Tensor:
    """Real validation images, as many whole batches as make about 64."""
    batch = context.run.options("trace", TraceOptions).batch
    wanted = -(-PARITY_IMAGES // batch) * batch
    images, _ = data_of(context).images("val", wanted)
    repeats = -(-wanted // len(images))
    return images.repeat(repeats, 1, 1, 1)[:wanted]
