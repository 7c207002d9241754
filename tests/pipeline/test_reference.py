"""Noise that is the same everywhere, and parity of what was said to it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from safetensors.numpy import save

from pipeline.errors import BundleError
from pipeline.reference import Reference, noise, normalised, parity

PIXELS = noise((4, 3, 8, 8))
LOGITS = np.linspace(-1, 1, 160, dtype=np.float32).reshape(16, 10)
WHOLE = Reference(PIXELS, LOGITS, LOGITS + np.float32(0.01))


def test_noise_is_whole_batches_and_the_same_everywhere() -> None:
    assert PIXELS.shape == (16, 3, 8, 8)
    assert noise((24, 1, 2, 2)).shape == (24, 1, 2, 2)
    assert noise((5, 1, 2, 2)).shape == (20, 1, 2, 2)
    found = hashlib.sha256(PIXELS.tobytes()).hexdigest()
    assert found == hashlib.sha256(noise((4, 3, 8, 8)).tobytes()).hexdigest()
    assert 120 < PIXELS.mean() < 135


def test_images_are_normalised_per_channel() -> None:
    images = normalised(PIXELS, (0.5, 0.4, 0.3), (0.2, 0.1, 0.5))
    assert images.dtype == np.float32
    expected = (PIXELS[3, 1, 2, 5] / 255 - 0.4) / 0.1
    assert images[3, 1, 2, 5] == pytest.approx(expected, rel=1e-5)


def test_it_survives_the_file() -> None:
    again = Reference.from_bytes(WHOLE.to_bytes())
    for name in ("pixels", "torch", "engine"):
        np.testing.assert_array_equal(getattr(again, name), getattr(WHOLE, name))


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"pixels": PIXELS, "torch": LOGITS},
        {"pixels": PIXELS.astype(np.float32), "torch": LOGITS, "engine": LOGITS},
        {"pixels": PIXELS[:0], "torch": LOGITS[:0], "engine": LOGITS[:0]},
        {"pixels": PIXELS, "torch": LOGITS[:3], "engine": LOGITS[:3]},
        {"pixels": PIXELS, "torch": LOGITS, "engine": LOGITS * np.float32(np.nan)},
    ],
)
def test_what_does_not_fit_is_refused(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(BundleError, match="reference.safetensors"):
        Reference.from_bytes(save(tensors))


@pytest.mark.parametrize("data", [b"", b"\x08" * 7, b"\xff" * 64, WHOLE.to_bytes()[:-1]])
def test_damaged_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="is damaged"):
        Reference.from_bytes(data)


def test_parity_counts_flips_and_the_largest_difference() -> None:
    other = LOGITS.copy()
    other[2, 0] += 5
    found = parity(LOGITS, other)
    assert found["label_flips"] == 1
    assert found["n"] == 16
    assert found["max_abs"] == pytest.approx(5)
    assert found["max_rel"] == pytest.approx(5)
    assert parity(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))["max_rel"] == 0
