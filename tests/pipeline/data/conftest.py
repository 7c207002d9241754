"""Tiny real image folders, made on the spot."""

import numpy as np
import pytest
from PIL import Image


def noise(seed, size=(8, 8)):
    height, width = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def make_folder(tmp_path):
    """make(train=(n of class 0, ...), test=..., ...) -> the root; images are noise JPEGs."""

    def make(*, classes=("cat", "dog"), size=(8, 8), root=tmp_path / "images", **counts):
        seed = 0
        for split, per_class in counts.items():
            for name, count in zip(classes, per_class, strict=True):
                folder = root / split / name
                folder.mkdir(parents=True)
                for index in range(count):
                    seed += 1
                    noise(seed, size).save(folder / f"{index:04d}.jpg", quality=95)
        return root

    return make
