"""Accuracy through both engines on the data's test images. Imported only where data is given."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.check.result import Gate
from pipeline.check.sides import Side, Sides
from pipeline.data.base import ImageData
from pipeline.data.sources import load_data
from pipeline.errors import DataError
from targets.base import Images

BATCH = 256
RANGE_IMAGES = 128
SAME = 1e-3  # mean and std of the same normalisation agree this far
Z99 = 2.575829


def open_data(spec: str, image_size: int | None) -> ImageData:
    """The images by name, resized to this many pixels square; None: as they are."""
    return load_data(spec, image_size=image_size, seed=0)


def range_batches(data: ImageData) -> tuple[Images, ...]:
    """Training images that int8 takes its ranges from, one batch."""
    images, _ = data.images("train", RANGE_IMAGES)
    return (images.numpy(),)


def check_accuracy(sides: Sides, data: ImageData, allowed: float) -> Gate:
    """The gate `accuracy`: top-1 that the candidate loses on the same test images, as a share.

    It judges these very images, so it is exact; the interval says what others might have shown.
    Without a baseline nothing is judged: the candidate's top-1 is told.
    """
    ours = _right(sides, sides.candidate, data)
    top1 = float(ours.mean())
    if sides.baseline is None:
        found = f"top-1 {100 * top1:.2f} % of {len(ours)} images"
        return Gate("accuracy", "pass", found, "no baseline to lose against", None, None)
    theirs = _right(sides, sides.baseline, data)
    loss = float(theirs.mean()) - top1
    low, high = paired_interval(theirs, ours)
    return Gate(
        "accuracy",
        "pass" if loss <= allowed else "regression",
        f"top-1 {100 * top1:.2f} %, {100 * loss:+.2f} points lost ({100 * low:+.2f} to "
        f"{100 * high:+.2f}) on {len(ours)} images",
        f"at most {100 * allowed:.2f} points lost",
        loss,
        (low, high),
    )


def paired_interval(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[float, float]:
    """99 % interval of the loss of right answers, paired by image: Bonett and Price's (2012)."""
    n = len(before) + 2
    # one more image of each kind keeps it honest where there are few
    lost = (int((before & ~after).sum()) + 1) / n
    won = (int((after & ~before).sum()) + 1) / n
    loss = lost - won
    half = Z99 * math.sqrt((lost + won - loss**2) / n)
    return max(-1.0, loss - half), min(1.0, loss + half)


def _right(sides: Sides, side: Side, data: ImageData) -> NDArray[np.bool_]:
    """Which test images the engine labels rightly, (n,)."""
    _check_normalisation(side, data)
    found = []
    with sides.target.load(side.engine) as engine:
        step = max(1, BATCH // engine.input_shape[0]) * engine.input_shape[0]
        for images, labels in data.batches("test", step):
            if images.shape[1:] != engine.input_shape[1:]:
                raise DataError(
                    f"{side.name} takes images {engine.input_shape[1:]}, "
                    f"the data has {tuple(images.shape[1:])}",
                    fix="give the data that the network was trained for",
                )
            found.append(engine.infer(images.numpy()).argmax(1) == labels.numpy())
    return np.concatenate(found)


def _check_normalisation(side: Side, data: ImageData) -> None:
    if side.bundle is None:
        return
    manifest, card = side.bundle.manifest, data.card
    for name, theirs, ours in (
        ("mean", manifest.mean, card.mean),
        ("std", manifest.std, card.std),
    ):
        if len(theirs) != len(ours) or not np.allclose(theirs, ours, atol=SAME):
            raise DataError(
                f"{side.name} was made for images of {name} {theirs}, the data's is {ours}",
                fix="give the data that the network was trained on",
            )
