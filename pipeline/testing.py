"""Test images of any data set as a bundle's engine takes them. Imports torch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline.data.base import DataCard, ImageData
from pipeline.data.sources import load_data
from pipeline.errors import DataError
from pipeline.hanging import Watch, together
from pipeline.manifest import Manifest
from targets.base import Engine, Images

RANGE_BATCH = 16

Fitting = Callable[[torch.Tensor], Images]  # (n, C, H, W) as the data has them -> as an engine's


def top1_of(engine: Engine, spec: str, manifest: Manifest, watch: Watch) -> tuple[int, int, str]:
    """(right, images, digest of the data) of the data's test split."""
    data = _data(spec, manifest)
    fit = fitting(data.card, manifest)
    right = 0
    for images, labels in data.batches("test", together(engine.input_shape[0])):
        right += int((watch.infer(engine, fit(images)).argmax(1) == labels.numpy()).sum())
    return right, data.size("test"), data.card.digest


def range_images(spec: str, manifest: Manifest, count: int) -> tuple[Images, ...]:
    """Training images in batches."""
    data = _data(spec, manifest)
    images, _ = data.images("train", count)
    whole = fitting(data.card, manifest)(images)
    return tuple(whole[start : start + RANGE_BATCH] for start in range(0, len(whole), RANGE_BATCH))


def fitting(card: DataCard, manifest: Manifest) -> Fitting:
    """Normalises images as the manifest says, whatever the data's own mean and spread are.

    DataError if they have another shape or other classes than the engine was made for.
    """
    if tuple(card.image_shape) != manifest.input_shape[1:]:
        raise DataError(
            f"images of {card.name} are {card.image_shape}, the engine's "
            f"{manifest.input_shape[1:]}",
            fix="give the data that the network was made for",
        )
    if tuple(card.classes) != tuple(manifest.classes):
        raise DataError(
            f"the classes of {card.name} are not the engine's",
            fix="give the data that the network was made for",
        )
    if (card.mean, card.std) == (manifest.mean, manifest.std):
        return torch.Tensor.numpy
    columns = (card.mean, card.std, manifest.mean, manifest.std)
    mean, std, wanted_mean, wanted_std = (torch.tensor(c).view(1, -1, 1, 1) for c in columns)
    scale, shift = std / wanted_std, (mean - wanted_mean) / wanted_std
    return lambda images: (images * scale + shift).numpy()


def _data(spec: str, manifest: Manifest) -> ImageData:
    height, width = manifest.input_shape[2:]
    return load_data(spec, image_size=height if height == width else None)
