"""Parts of an epoch: from a batch on, and shared by processes; and RandAugment on top."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.data.base import ImageData, Part
from pipeline.data.memory import InMemoryImages
from pipeline.data.sources import load_data
from pipeline.data.streaming import StreamingImages
from pipeline.errors import DataError


class Own(ImageData):
    """What a user may have written: only what is abstract."""

    def __init__(self, inner):
        self.inner, self.card = inner, inner.card

    def labels(self, split):
        return self.inner.labels(split)

    def take(self, split, indices):
        return self.inner.take(split, indices)

    def train_batches(self, batch_size, *, seed, epoch):
        return self.inner.train_batches(batch_size, seed=seed, epoch=epoch)


@pytest.fixture(params=["memory", "stream", "own"])
def data(request, make_folder):
    root = make_folder(train=(12, 11), test=(5, 4))
    limit = 0 if request.param == "stream" else 2**30
    found = load_data(f"imagefolder:{root}", cache_bytes=limit, workers=0, rand_augment=5)
    kinds = {"memory": InMemoryImages, "stream": StreamingImages, "own": InMemoryImages}
    assert isinstance(found, kinds[request.param])
    return Own(found) if request.param == "own" else found


def epoch(data, part):
    return list(data.train_part(4, seed=1, epoch=2, part=part))


def same(one, other):
    assert len(one) == len(other)
    for (images, labels), (again, labels_again) in zip(one, other, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)


def test_an_epoch_goes_on_where_it_stopped(data):
    whole = list(data.train_batches(4, seed=1, epoch=2))
    assert len(whole) == 5  # 21 images, the last one alone is dropped
    for start in range(6):
        same(epoch(data, Part(start=start)), whole[start:])


def test_processes_share_every_batch(data):
    whole = epoch(data, Part())
    shares = [epoch(data, Part(rank=rank, of=3)) for rank in range(3)]
    for number, (images, labels) in enumerate(whole):
        for rank, share in enumerate(shares):
            assert torch.equal(share[number][0], images[rank::3])
            assert torch.equal(share[number][1], labels[rank::3])


def test_processes_share_an_evaluation(data):
    whole = list(data.batches("test", 2))
    shares = [list(data.batches_part("test", 2, Part(rank=rank, of=2))) for rank in range(2)]
    assert [len(share) for share in shares] == [3, 2]
    for rank, share in enumerate(shares):
        same(share, whole[rank::2])


def test_the_cpu_needs_no_copy(data):
    images, _ = next(iter(data.on(torch.device("cpu")).batches("test", 4)))
    assert torch.equal(images, next(iter(data.batches("test", 4)))[0])


def test_rand_augment_is_on_the_card_and_changes_training_images_only():
    plain, augmented = load_data("digits"), load_data("digits", rand_augment=9)
    assert augmented.card == replace(plain.card, augment=(*plain.card.augment, "randaugment:9"))
    assert torch.equal(plain.images("train", 9)[0], augmented.images("train", 9)[0])
    options = {"seed": 0, "epoch": 0}
    before, labels = next(plain.train_batches(64, **options))
    after, same_labels = next(augmented.train_batches(64, **options))
    assert torch.equal(labels, same_labels)
    changed = (before != after).flatten(1).any(1)
    assert 40 < changed.sum() < 64  # some operations leave an image as it is
    again, _ = next(augmented.train_batches(64, **options))
    assert torch.equal(after, again)


def test_rand_augment_needs_pixels(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import numpy as np\n"
        "pair = lambda: (np.random.rand(30, 1, 4, 4), np.arange(30) % 2)\n"
        "def floats(): return {'train': pair(), 'test': pair(), 'classes': 'ab'}\n"
        "def own():\n"
        "    from pipeline.data.sources import load_data\n"
        "    return load_data('digits')\n"
    )
    with pytest.raises(DataError, match="holds numbers, and RandAugment changes pixels"):
        load_data(f"{file}:floats", rand_augment=9)
    with pytest.raises(DataError, match="RandAugment cannot be put into them"):
        load_data(f"{file}:own", rand_augment=9)


def test_each_image_has_its_own_operations():
    augmented = load_data("digits", rand_augment=15)
    alike = np.zeros((40, 3, 32, 32), np.uint8)
    alike[:, :, 8:24, 12:20] = 200
    splits = {"train": (torch.from_numpy(alike), torch.zeros(40, dtype=torch.int64))}
    data = InMemoryImages(replace(augmented.card, augment=("randaugment:15",)), splits)
    images, _ = next(data.train_batches(40, seed=0, epoch=0))
    assert len({image.numpy().tobytes() for image in images}) > 20
