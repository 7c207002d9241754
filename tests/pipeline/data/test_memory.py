from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.data.base import DataCard
from pipeline.data.memory import BatchAugment, InMemoryImages
from pipeline.errors import DataError

CARD = DataCard(
    name="made",
    classes=("a", "b"),
    image_shape=(3, 8, 8),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
    counts={"train": 21, "val": 4, "test": 5},
    skipped=("train/ä/1.jpg",),
    digest="0" * 64,
    augment=("crop:2", "flip"),
)


def pixels(n):
    return torch.from_numpy(np.random.default_rng(n).integers(0, 256, (n, 3, 8, 8), dtype=np.uint8))


def make(card=CARD):
    splits = {name: (pixels(n), torch.arange(n) % 2) for name, n in CARD.counts.items()}
    return InMemoryImages(card, splits), splits


def epoch(data, **options):
    return list(data.train_batches(4, **{"seed": 1, "epoch": 2, **options}))


def test_the_card_survives_json():
    assert DataCard.from_json(CARD.to_json()) == CARD


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"classes": 3}'])
def test_a_broken_card_is_refused(text):
    with pytest.raises(DataError, match="no data card"):
        DataCard.from_json(text)


def test_batches_are_normalised_and_in_order():
    data, splits = make()
    images, labels = (torch.cat(part) for part in zip(*data.batches("test", 2), strict=True))
    raw, expected_labels = splits["test"]
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (CARD.mean, CARD.std))
    torch.testing.assert_close(images, (raw.float() / 255 - mean) / std)
    assert images.dtype == torch.float32
    assert torch.equal(labels, expected_labels)
    assert data.size("test") == 5


def test_an_epoch_is_fixed_by_seed_and_epoch():
    first = epoch(make()[0])
    for (images, labels), (again, labels_again) in zip(first, epoch(make()[0]), strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)
    for other in ({"seed": 2}, {"epoch": 3}):
        assert not torch.equal(first[0][0], epoch(make()[0], **other)[0][0])


def test_an_epoch_leaves_the_global_generators_alone():
    torch.manual_seed(5)
    epoch(make()[0])
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_an_epoch_drops_the_last_single_image():
    batches = epoch(make()[0])
    assert [len(labels) for _, labels in batches] == [4] * 5


def test_an_epoch_without_augmentation_is_a_permutation():
    data, splits = make(replace(CARD, augment=(), mean=(0.0,) * 3, std=(1.0,) * 3))
    batches = list(data.train_batches(21, seed=0, epoch=0))
    got = {tuple((image * 255).round().int().flatten().tolist()) for image in batches[0][0]}
    assert got == {tuple(image.int().flatten().tolist()) for image in splits["train"][0]}


def test_images_are_the_head_of_one_mixed_order():
    data, _ = make()
    few, few_labels = data.images("train", 4)
    many, _ = data.images("train", 100)
    assert torch.equal(many[:4], few)
    assert len(many) == 21
    assert sorted(few_labels.tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize(("name", "mode"), [("crop:2", "reflect"), ("shift:2", "constant")])
def test_a_shift_is_a_cut_from_the_padded_image(name, mode):
    images = pixels(25).float()
    shifts = torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-2, 3))
    augment = BatchAugment.from_names((name,))
    moved = augment.apply(images, shifts, torch.zeros(25, dtype=torch.bool))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode=mode)
    for image, cut, (down, right) in zip(padded, moved, shifts.tolist(), strict=True):
        assert torch.equal(cut, image[:, 2 + down : 10 + down, 2 + right : 10 + right])


def test_a_flip_mirrors_left_and_right():
    images = pixels(2)
    flips = torch.tensor([True, False])
    moved = BatchAugment(flip=True).apply(images, torch.zeros(2, 2, dtype=torch.int64), flips)
    assert torch.equal(moved[0], images[0].flip(-1))
    assert torch.equal(moved[1], images[1])


def test_only_the_card_switches_flips_on():
    rng = np.random.default_rng(0)
    assert not BatchAugment.from_names(("shift:2",)).draw(500, rng)[1].any()
    shifts, flips = BatchAugment.from_names(("crop:2", "flip")).draw(500, rng)
    assert 200 < flips.sum() < 300
    assert set(shifts.flatten().tolist()) == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("name", ["flop", "crop", "crop:x", "shift:-1"])
def test_an_unknown_augmentation_is_refused(name):
    with pytest.raises(DataError, match=f"unknown augmentation '{name}'"):
        make(replace(CARD, augment=(name,)))
