"""Data sets that arrive as whole arrays: digits and CIFAR-10, and what all arrays share."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.base import DataCard, ImageData, Split
from pipeline.data.memory import InMemoryImages
from pipeline.data.reading import IMAGENET_MEAN, IMAGENET_STD, ReadOptions
from pipeline.data.splits import HELD_OUT_MOST, stratified_order, stratified_parts
from pipeline.errors import DataError

Arrays = Mapping[Split, tuple[Tensor, Tensor]]  # split -> images (n, C, H, W), labels (n,) int64

NATIVE_SIZE = 32  # pixels; digits are enlarged to it from 8
DIGITS_TEST_SHARE, DIGITS_VAL_SHARE = 0.25, 0.15
RESIZE_CHUNK = 1000  # images turned to float at once


def load_digits(options: ReadOptions) -> ImageData:
    """The 1797 handwritten digits of scikit-learn as (3, 32, 32) images, in three splits."""
    from sklearn.datasets import load_digits as sklearn_digits

    found = sklearn_digits()
    labels = found.target.astype(np.int64)
    grey = torch.from_numpy(found.images).float()[:, None] * (255 / 16)  # stored as 0..16
    images = _resized(grey, options.image_size or NATIVE_SIZE, options).repeat(1, 3, 1, 1)
    sizes = (round(DIGITS_TEST_SHARE * len(labels)), round(DIGITS_VAL_SHARE * len(labels)))
    test, val, train = (torch.from_numpy(part) for part in stratified_parts(labels, sizes))
    target = torch.from_numpy(labels)
    arrays: Arrays = {
        "train": (images[train], target[train]),
        "val": (images[val], target[val]),
        "test": (images[test], target[test]),
    }
    mean, std = mean_and_std(arrays["train"][0])
    card = DataCard(
        name="digits",
        classes=tuple(str(digit) for digit in found.target_names),
        image_shape=(3, images.shape[2], images.shape[3]),
        mean=mean,
        std=std,
        counts={},
        skipped=(),
        digest=array_digest(arrays),
        # a mirrored digit is another sign
        augment=options.augmented(f"shift:{max(1, images.shape[2] // 16)}"),
    )
    return in_memory(arrays, card, seed=options.seed, limit=options.limit)


def load_cifar10(root: Path, options: ReadOptions) -> ImageData:
    """CIFAR-10 in its Python form under `root`; 5000 training images become the val split."""
    trained, train_labels, classes = _read_cifar10(root, train=True)
    tested, test_labels, _ = _read_cifar10(root, train=False)
    size = options.image_size or NATIVE_SIZE
    images, test_images = _resized(trained, size, options), _resized(tested, size, options)
    parts = stratified_parts(train_labels.numpy(), (min(HELD_OUT_MOST, len(images) // 10),))
    val, train = (torch.from_numpy(part) for part in parts)
    arrays: Arrays = {
        "train": (images[train], train_labels[train]),
        "val": (images[val], train_labels[val]),
        "test": (test_images, test_labels),
    }
    card = DataCard(
        name="cifar10",
        classes=classes,
        image_shape=(3, size, size),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        counts={},
        skipped=(),
        digest=array_digest(arrays),
        augment=options.augmented(f"crop:{size // 8}", "flip"),
    )
    return in_memory(arrays, card, seed=options.seed, limit=options.limit)


def in_memory(arrays: Arrays, card: DataCard, *, seed: int, limit: int | None) -> ImageData:
    """Keep `limit` training images, stratified by `seed`, and count every split."""
    images, labels = arrays["train"]
    if limit is not None:
        order = stratified_order(labels.numpy(), seed=seed)[:limit]
        kept = torch.from_numpy(np.sort(order))
        arrays = {**arrays, "train": (images[kept], labels[kept])}
    counts: dict[str, int] = {split: len(part) for split, (_, part) in arrays.items()}
    return InMemoryImages(replace(card, counts=counts), arrays)


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, in units of 0..1 pixels, of uint8 images (n, C, H, W)."""
    std, mean = torch.std_mean(images.float() / 255, dim=(0, 2, 3))
    return _rounded(mean), _rounded(std.clamp(min=1e-3))  # a constant channel must not divide by 0


def array_digest(arrays: Arrays) -> str:
    """SHA-256 over the pixels and labels of every split."""
    digest = hashlib.sha256()
    for split in sorted(arrays):
        for tensor in arrays[split]:
            digest.update(f"{split} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values.tolist())


def _resized(images: Tensor, size: int, options: ReadOptions) -> Tensor:
    """(n, C, H, W) in 0..255 -> uint8 (n, C, size, size), bilinear."""
    if images.dtype == torch.uint8 and images.shape[-1] == size:
        return images
    wanted = len(images) * 3 * size * size
    if wanted > options.cache_bytes:
        raise DataError(
            f"{len(images)} images of {size} pixels need {wanted} bytes of memory, "
            f"{options.cache_bytes} are allowed",
            fix="lower --image-size, or give the images as imagefolder:DIR, which streams",
        )
    chunks = [
        F.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True)
        for chunk in torch.split(images, RESIZE_CHUNK)
    ]
    return torch.cat([chunk.round().clamp(0, 255).to(torch.uint8) for chunk in chunks])


def _read_cifar10(root: Path, *, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    from torchvision.datasets import CIFAR10

    base = root.parent if root.name == CIFAR10.base_folder else root
    try:
        with warnings.catch_warnings():
            # the files were pickled by an old numpy, of whose forms a new numpy warns
            warnings.simplefilter("ignore")
            found = CIFAR10(str(base), train=train, download=False)
    except (RuntimeError, OSError) as failure:
        raise DataError(
            f"{base} does not hold CIFAR-10, or its files are incomplete",
            fix=f"expected {CIFAR10.base_folder}/ with data_batch_1 to data_batch_5, test_batch "
            "and batches.meta, as unpacked from cifar-10-python.tar.gz",
        ) from failure
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(found.targets), tuple(found.classes)
