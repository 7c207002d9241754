"""Test images of any data set as a bundle's engine takes them. Imports torch."""

from __future__ import annotations

import torch

from pipeline.data.base import DataCard
from pipeline.data.sources import load_data
from pipeline.errors import DataError
from pipeline.hanging import Watch, together
from pipeline.manifest import Manifest
from targets.base import Engine, Images

RANGE_BATCH = 16


def top1_of(engine: Engine, spec: str, manifest: Manifest, watch: Watch) -> tuple[int, int, str]:
    """(right, images, digest of the data) of the data's test split; images are normalised as the
    manifest says, whatever the data's own mean and spread are."""
    height, width = manifest.input_shape[2:]
    data = load_data(spec, image_size=height if height == width else None)
    _check(data.card, manifest)
    scale, shift = _renormalising(data.card, manifest)
    right = 0
    for images, labels in data.batches("test", together(engine.input_shape[0])):
        logits = watch.infer(engine, (images * scale + shift).numpy())
        right += int((logits.argmax(1) == labels.numpy()).sum())
    return right, data.size("test"), data.card.digest


def _check(card: DataCard, manifest: Manifest) -> None:
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


def _renormalising(card: DataCard, manifest: Manifest) -> tuple[torch.Tensor, torch.Tensor]:
    """What takes images of the card's mean and spread to the manifest's, (1, C, 1, 1) each."""
    if (card.mean, card.std) == (manifest.mean, manifest.std):
        return torch.ones(1), torch.zeros(1)
    columns = (card.mean, card.std, manifest.mean, manifest.std)
    mean, std, wanted_mean, wanted_std = (torch.tensor(c).view(1, -1, 1, 1) for c in columns)
    return std / wanted_std, (mean - wanted_mean) / wanted_std


def range_images(spec: str, manifest: Manifest, count: int) -> tuple[Images, ...]:
    """Training images in batches, normalised as the manifest says."""
    height, width = manifest.input_shape[2:]
    data = load_data(spec, image_size=height if height == width else None)
    _check(data.card, manifest)
    scale, shift = _renormalising(data.card, manifest)
    images, _ = data.images("train", count)
    whole = (images * scale + shift).numpy()
    return tuple(whole[start : start + RANGE_BATCH] for start in range(0, len(whole), RANGE_BATCH))
