"""Images of every kind that a fault is about."""

from pathlib import Path

import numpy as np

CLASSES = [str(digit) for digit in range(10)]


def splits(images, labels, classes=CLASSES):
    """Two thirds to train, a sixth each to validate and to test."""
    a, b = 2 * len(images) // 3, 5 * len(images) // 6
    return {
        "train": (images[:a], labels[:a]),
        "val": (images[a:b], labels[a:b]),
        "test": (images[b:], labels[b:]),
        "classes": classes,
    }


def pixels(count=240, size=1):
    """(n, 1, 8 * size, 8 * size) uint8 digits and their labels (n,)."""
    with np.load(Path(__file__).with_name("digits.npz")) as found:
        images, labels = found["images"][:count], found["labels"][:count]
    return images.repeat(size, 1).repeat(size, 2)[:, None], labels


def small():
    return splits(*pixels(size=2))


def four_channels():
    images, labels = pixels(size=2)
    return splits(np.concatenate([images, 255 - images, images // 2, images], 1), labels)


def oblong():
    """20 high, 12 wide."""
    images, labels = pixels(size=2)
    return splits(np.pad(images, ((0, 0), (0, 0), (2, 2), (0, 0)))[..., 2:14], labels)


def large():
    """So large that a training step of all of them takes some hundred megabytes."""
    return splits(*pixels(count=384, size=8))


def many_classes(count=10_000):
    """One image of noise a class."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(count)
    return {
        "train": (images, labels),
        "val": (images[:100], labels[:100]),
        "test": (images[:100], labels[:100]),
        "classes": [f"class {index:05d}" for index in range(count)],
    }


def _with(value, split):
    made = splits(*pixels(size=2))
    images, labels = made[split]
    images = images.astype(np.float32) / 255
    others = {
        s: (made[s][0].astype(np.float32) / 255, made[s][1]) for s in ("train", "val", "test")
    }
    images[len(images) // 2, 0, 3, 4] = value
    return {**made, **others, split: (images, labels)}


def nan_in_train():
    return _with(np.nan, "train")


def nan_in_test():
    return _with(np.nan, "test")


def infinite_in_train():
    return _with(np.inf, "train")


def infinite_in_val():
    return _with(-np.inf, "val")


def huge_in_train():
    """Finite, but so large that no loss is."""
    return _with(3e38, "train")


def streamed():
    """The folder `pictures`, decoded by worker processes as a set too large for memory is."""
    from pipeline.data.sources import load_data

    return load_data("imagefolder:pictures", image_size=16, cache_bytes=0, workers=2)
