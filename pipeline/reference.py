"""Images made of noise, and what the network said to them: parity on any machine, without data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.errors import BundleError
from pipeline.manifest import REPACK
from targets.base import Images, Logits

REFERENCE = "reference.safetensors"
FEWEST = 16  # images; and a whole number of batches
SEED = 0
SMALLEST = 1e-30  # of a divisor


@dataclass(frozen=True)
class Reference:
    """Noise, and its logits by torch and by the certified engine."""

    pixels: NDArray[np.uint8]  # (n, C, H, W)
    torch: Logits  # (n, classes)
    engine: Logits  # (n, classes)

    def to_bytes(self) -> bytes:
        return save({"pixels": self.pixels, "torch": self.torch, "engine": self.engine})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """BundleError unless the three tensors are there and fit each other."""
        try:
            found = load(data)
            pixels, torch, engine = found["pixels"], found["torch"], found["engine"]
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise BundleError(f"{REFERENCE} is damaged: {error}", fix=REPACK) from error
        if pixels.ndim != 4 or pixels.dtype != np.uint8 or not len(pixels):
            raise BundleError(f"{REFERENCE} holds no images", fix=REPACK)
        if torch.shape != engine.shape or torch.ndim != 2 or len(torch) != len(pixels):
            raise BundleError(f"{REFERENCE}: logits and images do not fit", fix=REPACK)
        if not np.isfinite(torch).all() or not np.isfinite(engine).all():
            raise BundleError(f"{REFERENCE} holds logits that are not finite", fix=REPACK)
        return cls(pixels, torch.astype(np.float32), engine.astype(np.float32))

    def images(self, mean: Sequence[float], std: Sequence[float]) -> Images:
        """The pixels as the network takes them."""
        return normalised(self.pixels, mean, std)


def noise(input_shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Whole batches of random pixels, FEWEST images or more, (n, C, H, W)."""
    batch = input_shape[0]
    count = -(-FEWEST // batch) * batch
    generator = np.random.default_rng(SEED)
    return generator.integers(0, 256, (count, *input_shape[1:]), dtype=np.uint8)


def normalised(pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> Images:
    """(n, C, H, W) pixels of 0..255 as float32 images; mean and std per channel, of 0..1."""
    shape = (1, -1, 1, 1)
    middle = np.array(mean, np.float32).reshape(shape)
    spread = np.array(std, np.float32).reshape(shape)
    scaled: Images = ((pixels.astype(np.float32) / np.float32(255)) - middle) / spread
    return scaled


def parity(expected: Logits, got: Logits) -> dict[str, Any]:
    """Largest differences of (n, classes) logits, and labels that flipped."""
    worst = float(np.abs(expected - got).max())
    return {
        "max_abs": worst,
        "max_rel": worst / max(float(np.abs(expected).max()), SMALLEST),
        "label_flips": int((expected.argmax(1) != got.argmax(1)).sum()),
        "n": len(expected),
    }
