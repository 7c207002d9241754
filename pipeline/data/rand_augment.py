"""RandAugment, the same for an image whoever applies it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

OPERATIONS = 2  # one after the other on an image, as in most recipes


def rand_augment(magnitude: int) -> v2.Transform:
    """For one image, PIL or uint8 (C, H, W); draws from torch's global generator."""
    return v2.RandAugment(num_ops=OPERATIONS, magnitude=magnitude)


def each_seeded(transform: v2.Transform, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """(n, C, H, W) -> the same shape, each image transformed with its own seed."""
    with torch.random.fork_rng(devices=[]):
        done = []
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            done.append(transform(image))
    return torch.stack(done)
