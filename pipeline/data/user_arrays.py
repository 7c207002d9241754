"""`path/to/file.py:factory`: the user's own data, as an ImageData or as plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.arrays import Arrays, array_digest, in_memory, mean_and_std
from pipeline.data.base import SPLITS, DataCard, ImageData, Split
from pipeline.data.reading import ReadOptions
from pipeline.data.splits import hold_out
from pipeline.errors import DataError
from pipeline.models.user_file import call_user_factory, without_folder

SHAPE_OF_MAPPING = (
    "return {'train': (images (n, C, H, W), labels (n,)), 'test': ..., 'classes': [...]}, "
    "optionally with 'val', 'mean', 'std', 'augment'"
)


def from_user_factory(spec: str, options: ReadOptions) -> ImageData:
    """Call the factory; it may accept image_size, seed and limit by keyword."""
    wanted = {"image_size": options.image_size, "seed": options.seed, "limit": options.limit}
    # what was not asked for is left to the factory's own defaults
    given = {name: value for name, value in wanted.items() if value is not None}
    result = call_user_factory(spec, given, error=DataError)
    if isinstance(result, ImageData):
        return _own(result, spec, options)
    if isinstance(result, Mapping):
        return _from_mapping(result, spec, options)
    raise DataError(f"{spec!r} returned a {type(result).__name__}", fix=SHAPE_OF_MAPPING)


def _own(result: ImageData, spec: str, options: ReadOptions) -> ImageData:
    limit = options.limit
    if options.rand_augment:
        raise DataError(
            f"{spec!r} makes its batches itself, RandAugment cannot be put into them",
            fix="leave --rand-augment out, or let the factory return arrays",
        )
    if limit is not None and result.size("train") > limit:
        raise DataError(
            f"{spec!r} gave {result.size('train')} training images, the limit is {limit}",
            fix="let the factory accept limit= and keep to it",
        )
    return result


def _from_mapping(result: Mapping[str, Any], spec: str, options: ReadOptions) -> ImageData:
    absent = [key for key in ("train", "test", "classes") if key not in result]
    if absent:
        raise DataError(f"{spec!r} returned no {', '.join(absent)}", fix=SHAPE_OF_MAPPING)
    classes = tuple(str(name) for name in result["classes"])
    arrays: dict[Split, tuple[Tensor, Tensor]] = {
        split: _pair(result[split], f"{spec!r}, {split}", classes=len(classes))
        for split in SPLITS
        if split in result
    }
    if "val" not in arrays:
        images, labels = arrays["train"]
        train, val = (torch.from_numpy(part) for part in hold_out(labels.numpy()))
        arrays["train"], arrays["val"] = (images[train], labels[train]), (images[val], labels[val])
    _require_alike(arrays, spec)
    card = _card(result, arrays, spec=spec, classes=classes)
    card = replace(card, augment=options.augmented(*card.augment))
    return in_memory(arrays, card, seed=options.seed, limit=options.limit)


def _card(
    result: Mapping[str, Any], arrays: Arrays, *, spec: str, classes: tuple[str, ...]
) -> DataCard:
    images = arrays["train"][0]
    channels, height, width = images.shape[1:]
    if images.dtype == torch.uint8:
        mean, std = mean_and_std(images)
    else:  # floats are taken as normalised already, unless mean and std say otherwise
        mean, std = (0.0,) * channels, (1.0,) * channels
    mean = tuple(float(value) for value in result.get("mean", mean))
    std = tuple(float(value) for value in result.get("std", std))
    if not (len(mean) == len(std) == channels and min(std) > 0):
        raise DataError(
            f"{spec!r}: mean has {len(mean)} and std {len(std)} values for {channels} channels",
            fix="give one mean and one positive std per channel",
        )
    return DataCard(
        name=without_folder(spec),
        classes=classes,
        image_shape=(channels, height, width),
        mean=mean,
        std=std,
        counts={},
        skipped=(),
        digest=array_digest(arrays),
        augment=tuple(result.get("augment", ())),
    )


def _pair(value: Any, what: str, *, classes: int) -> tuple[Tensor, Tensor]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise DataError(f"{what} is no pair of images and labels", fix=SHAPE_OF_MAPPING)
    images, labels = (_tensor(part, what) for part in value)
    if images.dtype != torch.uint8:
        images = images.float()
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels) or len(labels) == 0:
        raise DataError(
            f"{what}: images have shape {tuple(images.shape)}, labels {tuple(labels.shape)}",
            fix="give images (n, C, H, W) and labels (n,) with n at least 1",
        )
    if not labels.is_floating_point():
        labels = labels.long()  # unsigned ones of more than 8 bits have no minimum
    if labels.is_floating_point() or labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"{what}: labels are {labels.dtype} from {labels.min()} to {labels.max()}",
            fix=f"give whole numbers from 0 to {classes - 1}",
        )
    if images.is_floating_point() and not torch.isfinite(images).all():
        raise DataError(f"{what}: images hold NaN or infinite values", fix="remove these images")
    return images.contiguous(), labels


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as failure:
        raise DataError(f"{what} holds a {type(value).__name__}", fix=SHAPE_OF_MAPPING) from failure


def _require_alike(arrays: Arrays, spec: str) -> None:
    kinds = {(tuple(images.shape[1:]), images.dtype) for images, _ in arrays.values()}
    if len(kinds) > 1:
        found = " and ".join(sorted(f"{shape} {dtype}" for shape, dtype in kinds))
        raise DataError(
            f"{spec!r}: the splits differ in image shape or type: {found}",
            fix="give all splits the same image shape and type",
        )
