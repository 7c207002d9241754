"""Accuracy through both engines on the data's test images. Imported only where data is given."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.attribution import compare
from pipeline.check.result import Gate
from pipeline.check.sides import Side, Sides
from pipeline.data.base import ImageData
from pipeline.data.sources import load_data
from pipeline.errors import DataError
from pipeline.hanging import together
from pipeline.testing import fitting
from targets.base import Images

RANGE_IMAGES = 128


def open_data(spec: str, image_size: int | None) -> ImageData:
    """The images by name, resized to this many pixels square; None: as they are."""
    return load_data(spec, image_size=image_size, seed=0)


def range_batches(data: ImageData) -> tuple[Images, ...]:
    """Training images that int8 takes its ranges from, one batch."""
    images, _ = data.images("train", RANGE_IMAGES)
    return (images.numpy(),)


def check_accuracy(sides: Sides, data: ImageData, allowed: float) -> Gate:
    """The gate `accuracy`: top-1 that the candidate loses on the same test images, as a share.

    It judges these very images, so it is exact; the 95 % interval says what others might have
    shown. Without a baseline nothing is judged: the candidate's top-1 is told.
    """
    labels = data.labels("test").numpy()
    predicted = {"candidate": _predicted(sides, sides.candidate, data)}
    top1 = float((predicted["candidate"] == labels).mean())
    if sides.baseline is None:
        found = f"top-1 {100 * top1:.2f} % of {len(labels)} images"
        return Gate("accuracy", "pass", found, "no baseline to lose against", None, None)
    predicted["baseline"] = _predicted(sides, sides.baseline, data)
    step = compare("baseline", "candidate", predicted, labels)
    low, high = -step.ci95[1], -step.ci95[0]
    return Gate(
        "accuracy",
        "pass" if -step.change <= allowed else "regression",
        f"top-1 {100 * top1:.2f} %, {-100 * step.change + 0.0:+.2f} points lost ({100 * low:+.2f} "
        f"to {100 * high:+.2f}) on {step.n} images",
        f"at most {100 * allowed:.2f} points lost",
        -step.change + 0.0,  # not -0.0
        (low, high),
    )


def _predicted(sides: Sides, side: Side, data: ImageData) -> NDArray[np.int64]:
    """The engine's labels of all test images, (n,)."""
    fit = torch.Tensor.numpy if side.bundle is None else fitting(data.card, side.bundle.manifest)
    found = []
    with sides.watch.load(sides.target, side.engine) as engine:
        for images, _ in data.batches("test", together(engine.input_shape[0])):
            if images.shape[1:] != engine.input_shape[1:]:
                raise DataError(
                    f"{side.name} takes images {engine.input_shape[1:]}, "
                    f"the data has {tuple(images.shape[1:])}",
                    fix="give the data that the network was trained for",
                )
            found.append(sides.watch.infer(engine, fit(images)).argmax(1))
    return np.concatenate(found)
