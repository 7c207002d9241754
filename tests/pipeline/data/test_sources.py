import numpy as np
import pytest
import torch
import torchvision

from pipeline.data.base import ImageData
from pipeline.data.sources import load_data
from pipeline.errors import DataError


def keys(data, split):
    images, _ = data.images(split, 10_000)
    return {image.numpy().tobytes() for image in images}


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def test_digits_are_split_and_stratified(digits):
    assert digits.card.counts == {"train": 1078, "val": 270, "test": 449}
    assert digits.card.image_shape == (3, 32, 32)
    assert digits.card.classes == tuple("0123456789")
    for split, count in digits.card.counts.items():
        found = torch.bincount(digits.labels(split), minlength=10)
        assert found.min() > 0.08 * count
        assert found.max() < 0.12 * count


def test_digits_splits_are_disjoint(digits):
    train, val, test = (keys(digits, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (1078, 270, 449)
    assert not train & val
    assert not (train | val) & test


def test_digits_are_normalised_three_equal_channels_and_never_flipped(digits):
    images, _ = digits.images("train", 2000)
    assert torch.equal(images[:, 0], images[:, 2])
    assert abs(images.mean().item()) < 1e-3
    assert abs(images.std().item() - 1) < 1e-3
    assert digits.card.augment == ("shift:2",)


def test_digits_splits_do_not_depend_on_seed_or_limit(digits):
    small = load_data("digits", seed=3, limit=100)
    assert small.card.counts == {"train": 100, "val": 270, "test": 449}
    assert torch.bincount(small.labels("train")).tolist() == [10] * 10
    assert torch.equal(small.labels("test"), digits.labels("test"))


def test_digits_at_another_size():
    assert load_data("digits", image_size=16).images("test", 1)[0].shape == (1, 3, 16, 16)


def test_arrays_over_the_memory_limit_are_refused():
    with pytest.raises(DataError, match="1797 images of 64 pixels need 22081536 bytes"):
        load_data("digits", image_size=64, cache_bytes=10**6)


@pytest.mark.parametrize("spec", ["digit", "imagefolder", "imagenet:/data", "cifar100:/data", ""])
def test_an_unknown_source_names_the_forms(spec):
    with pytest.raises(DataError, match=f"unknown data {spec!r}") as failure:
        load_data(spec)
    assert "imagefolder:DIR" in failure.value.fix


@pytest.mark.parametrize("option", ["image_size", "limit"])
def test_sizes_below_one_are_refused(option):
    with pytest.raises(DataError, match=f"{option} is 0"):
        load_data("digits", **{option: 0})


def test_missing_cifar10_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match="does not hold CIFAR-10") as failure:
        load_data(f"cifar10:{tmp_path}")
    assert "data_batch_1" in failure.value.fix


class FakeCifar10:
    """What torchvision's class gives, at a hundredth of the size."""

    base_folder = "cifar-10-batches-py"
    roots: list[str] = []

    def __init__(self, root, *, train, download):
        assert not download
        self.roots.append(root)
        n = 500 if train else 100
        self.data = np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        self.targets = [index % 10 for index in range(n)]
        self.classes = [f"class {index}" for index in range(10)]


def test_cifar10_is_split_and_kept_in_channel_order(monkeypatch, tmp_path):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar10)
    data = load_data(f"cifar10:{tmp_path}/cifar-10-batches-py", limit=200)
    assert set(FakeCifar10.roots) == {str(tmp_path)}
    assert data.card.counts == {"train": 200, "val": 50, "test": 100}
    assert data.card.augment == ("crop:4", "flip")
    (image, _), *_ = data.batches("test", 1)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (data.card.mean, data.card.std))
    expected = FakeCifar10("", train=False, download=False).data[0].transpose(2, 0, 1)
    np.testing.assert_allclose((image[0] * std + mean) * 255, expected, atol=1e-3)


ARRAYS = """
import numpy as np
def pair(n, dtype=np.uint8, labels=2):
    rng = np.random.default_rng(n)
    return rng.integers(0, 256, (n, 1, 8, 8)).astype(dtype), np.arange(n) % labels
"""


@pytest.fixture
def from_file(tmp_path):
    def load(text, **options):
        file = tmp_path / "mine.py"
        file.write_text(ARRAYS + text)
        return load_data(f"{file}:make", **options)

    return load


def test_a_factory_of_arrays_gets_its_val_split_and_card(from_file):
    data = from_file(
        "def make(): return {'train': pair(50), 'test': pair(10), 'classes': ['a', 'b']}\n",
        limit=30,
    )
    assert data.card.counts == {"train": 30, "val": 5, "test": 10}
    assert data.card.image_shape == (1, 8, 8)
    assert data.card.augment == ()
    assert 0.4 < data.card.mean[0] < 0.6
    images, labels = next(data.train_batches(8, seed=0, epoch=0))
    assert images.shape == (8, 1, 8, 8)
    assert labels.dtype == torch.int64


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "int16"])
def test_labels_are_whole_numbers_of_any_size(from_file, kind):
    text = """
def small(n):
    images, labels = pair(n)
    return images, labels.astype(np.KIND)
def make():
    return {'train': small(50), 'test': small(10), 'classes': ['a', 'b']}
"""
    data = from_file(text.replace("KIND", kind))
    assert data.labels("test").dtype == torch.int64
    with pytest.raises(DataError, match="give whole numbers from 0 to 0"):
        from_file(text.replace("KIND", kind).replace("['a', 'b']", "['a']"))


def test_floats_are_taken_as_normalised(from_file):
    data = from_file(
        "def make():\n"
        "    f = np.float64\n"
        "    return {'train': pair(9, f), 'val': pair(5, f), 'test': pair(4, f), 'classes': 'ab'}\n"
    )
    rng = np.random.default_rng(4)
    images, _ = next(data.batches("test", 4))
    assert np.array_equal(images.numpy(), rng.integers(0, 256, (4, 1, 8, 8)).astype(np.float32))


def test_a_factory_is_given_what_was_asked_for(from_file):
    text = (
        "def make(image_size=7, seed=8):\n"
        "    arrays = {'train': pair(50), 'test': pair(10)}\n"
        "    return {**arrays, 'classes': [f'size {image_size}', f'seed {seed}']}\n"
    )
    assert from_file(text, image_size=20, seed=3).card.classes == ("size 20", "seed 3")
    assert from_file(text).card.classes == ("size 7", "seed 0")


def test_a_factory_may_return_image_data_but_must_keep_the_limit(from_file):
    text = (
        "from pipeline.data.sources import load_data\n"
        "def make(): return load_data('digits', image_size=8, limit=40)\n"
    )
    assert isinstance(from_file(text, limit=40), ImageData)
    with pytest.raises(DataError, match="40 training images, the limit is 39"):
        from_file(text, limit=39)


BAD_RESULTS = {
    "3": "returned a int",
    "{'train': pair(50)}": "returned no test, classes",
    "{'train': pair(50), 'test': 3, 'classes': 'ab'}": "test is no pair",
    "{'train': pair(50), 'test': (pair(3)[0], [0, 1]), 'classes': 'ab'}": r"labels \(2,\)",
    "{'train': pair(50), 'test': (pair(3)[0][0], [0]), 'classes': 'ab'}": r"shape \(1, 8, 8\)",
    "{'train': pair(50), 'test': (object(), [0]), 'classes': 'ab'}": "holds a object",
    "{'train': pair(50, labels=3), 'test': pair(9), 'classes': 'ab'}": "from 0 to 2",
    "{'train': pair(50), 'test': pair(9, float), 'classes': 'ab'}": "differ in image shape or type",
    "{'train': (pair(9)[0] * np.nan, [0] * 9), 'test': pair(9), 'classes': 'ab'}": "hold NaN",
    "{'train': pair(50), 'test': pair(9), 'classes': 'ab', 'std': [0]}": "one positive std",
    "{'train': pair(50), 'test': pair(9), 'classes': 'ab', 'mean': [0, 0]}": "mean has 2",
    "{'train': pair(50), 'test': pair(9), 'classes': 'ab', 'augment': ['x']}": "augmentation 'x'",
    "1 / 0": "line 6 failed with ZeroDivisionError",
}


@pytest.mark.parametrize(("result", "reason"), BAD_RESULTS.items())
def test_each_bad_result_has_one_clear_message(from_file, result, reason):
    with pytest.raises(DataError, match=reason) as failure:
        from_file(f"def make(): return {result}\n")
    assert failure.value.fix
