import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.memory import InMemoryImages
from pipeline.data.sources import load_data
from pipeline.data.streaming import StreamingImages
from pipeline.errors import DataError


def load(root, **options):
    return load_data(f"imagefolder:{root}", **options)


def break_files(root, count, split="train"):
    files = sorted((root / split).rglob("*.jpg"))[:count]
    for file in files:
        file.write_bytes(file.read_bytes()[:200])
    return tuple(file.relative_to(root).as_posix() for file in files)


def as_set(data, split):
    images, _ = data.images(split, 10_000)
    return {image.numpy().tobytes() for image in images}


def test_a_small_folder_is_held_in_memory_at_its_native_size(make_folder):
    data = load(make_folder(train=(20, 10), test=(3, 2), size=(8, 12)))
    assert isinstance(data, InMemoryImages)
    assert data.card.name == "imagefolder:images"
    assert data.card.classes == ("cat", "dog")
    assert data.card.image_shape == (3, 8, 12)
    assert data.card.counts == {"train": 27, "val": 3, "test": 5}
    assert data.card.augment == ("crop:1", "flip")
    assert data.labels("test").tolist() == [0, 0, 0, 1, 1]
    assert sorted(data.labels("val").tolist()) == [0, 0, 1]


def test_the_pixels_are_those_of_the_files(make_folder):
    root = make_folder(train=(20, 10), test=(3, 2))
    data = load(root)
    (images, _), *_ = data.batches("test", 5)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (data.card.mean, data.card.std))
    for image, path in zip(images, sorted((root / "test").rglob("*.jpg")), strict=True):
        with Image.open(path) as file:
            expected = torch.from_numpy(np.array(file)).permute(2, 0, 1)
        torch.testing.assert_close((image * std + mean) * 255, expected.float())


def test_the_held_out_images_are_not_in_train(make_folder):
    data = load(make_folder(train=(20, 20), test=(3, 3)))
    train, val, test = (as_set(data, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (36, 4, 6)
    assert not train & val
    assert not (train | val) & test


def test_val_alone_is_the_test_split(make_folder):
    data = load(make_folder(train=(10, 10), val=(3, 3)))
    assert data.card.counts == {"train": 18, "val": 2, "test": 6}


def test_val_and_test_are_both_used_and_nothing_is_held_out(make_folder):
    data = load(make_folder(train=(10, 10), val=(3, 3), test=(4, 4)))
    assert data.card.counts == {"train": 20, "val": 6, "test": 8}


def test_limit_keeps_a_stratified_part_of_train_only(make_folder):
    root = make_folder(train=(40, 20), test=(3, 3))
    full, small, smaller = load(root), load(root, limit=12), load(root, limit=6)
    assert small.card.counts == {"train": 12, "val": 6, "test": 6}
    assert sorted(small.labels("train").tolist()) == [0] * 8 + [1] * 4
    assert as_set(smaller, "train") < as_set(small, "train") < as_set(full, "train")
    assert as_set(small, "val") == as_set(full, "val")
    other = load(root, limit=12, seed=1)
    assert as_set(other, "train") != as_set(small, "train")
    assert as_set(other, "val") == as_set(full, "val")


def test_mixed_sizes_become_224_unless_a_size_is_given(make_folder):
    root = make_folder(train=(4, 4), test=(1, 1))
    Image.new("RGB", (20, 10)).save(root / "test" / "cat" / "wide.png")
    assert load(root).card.image_shape == (3, 224, 224)
    assert load(root, image_size=16).card.image_shape == (3, 16, 16)


def test_names_with_spaces_and_unicode(make_folder, tmp_path):
    root = make_folder(
        classes=("größe 2", "犬 dog"), root=tmp_path / "my données", train=(5, 5), test=(1, 1)
    )
    data = load(root, image_size=8)
    assert data.card.classes == ("größe 2", "犬 dog")
    assert data.card.name == "imagefolder:my données"


def test_grey_images_are_converted(make_folder):
    root = make_folder(train=(5, 5), test=(1, 1))
    Image.new("L", (8, 8), 100).save(root / "test" / "cat" / "0000.jpg")
    (image, _), *_ = load(root).batches("test", 1)
    assert image.shape == (1, 3, 8, 8)


def test_progress_counts_every_image(make_folder):
    calls = []
    load(make_folder(train=(10, 10), test=(2, 2)), progress=lambda *call: calls.append(call))
    assert calls == [(24, 24)]


def test_the_digest_changes_with_the_files_alone(make_folder):
    root = make_folder(train=(10, 10), test=(2, 2))
    before = load(root).card.digest
    assert load(root, limit=4).card.digest == before
    shutil.copy(root / "test" / "cat" / "0000.jpg", root / "test" / "cat" / "more.jpg")
    assert load(root).card.digest != before


@pytest.mark.parametrize("cache_bytes", [2**30, 0])
def test_half_a_percent_corrupt_is_skipped_and_listed(make_folder, cache_bytes):
    root = make_folder(train=(90, 90), test=(10, 10))
    names = break_files(root, 1)
    data = load(root, cache_bytes=cache_bytes)
    assert data.card.skipped == names
    assert sum(data.card.counts.values()) == 199
    assert sum(data.size(split) for split in ("train", "val", "test")) == 199


@pytest.mark.parametrize("cache_bytes", [2**30, 0])
def test_more_than_one_percent_corrupt_is_an_error(make_folder, cache_bytes):
    root = make_folder(train=(90, 90), test=(10, 10))
    names = break_files(root, 2)
    assert load(root, cache_bytes=cache_bytes).card.skipped == names  # exactly 1 % is allowed
    names = break_files(root, 3)
    with pytest.raises(DataError, match=f"3 of 200 images under .* are corrupt: {names[0]}"):
        load(root, cache_bytes=cache_bytes)


def no_folder(root):
    shutil.rmtree(root)


def no_train(root):
    shutil.rmtree(root / "train")


def no_test(root):
    shutil.rmtree(root / "test")


def empty_train(root):
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


def images_without_classes(root):
    for file in (root / "train" / "cat").iterdir():
        shutil.copy(file, root / "train" / file.name)
    shutil.rmtree(root / "train" / "cat")
    shutil.rmtree(root / "train" / "dog")


def one_class(root):
    shutil.rmtree(root / "train" / "dog")


def empty_class(root):
    shutil.rmtree(root / "train" / "dog")
    (root / "train" / "dog").mkdir()


def text_files_only(root):
    empty_class(root)
    (root / "train" / "dog" / "notes.txt").write_text("no image")


def empty_test_class(root):
    shutil.rmtree(root / "test" / "dog")
    (root / "test" / "dog").mkdir()


def other_test_classes(root):
    (root / "train" / "fox").mkdir()
    (root / "test" / "owl").mkdir()


BAD_FOLDERS = {
    no_folder: "there is no folder",
    no_train: "has no train/ folder",
    no_test: "has no test/ and no val/ folder",
    empty_train: "train holds nothing",
    images_without_classes: "holds files but no class folders",
    one_class: "holds one class only: cat",
    empty_class: "dog holds no images",
    text_files_only: "dog holds 1 files, none an image",
    empty_test_class: "test/dog holds no images",
    other_test_classes: "differ from those of train/: it lacks fox and adds owl",
}


@pytest.mark.parametrize(
    ("damage", "reason"), BAD_FOLDERS.items(), ids=[d.__name__ for d in BAD_FOLDERS]
)
def test_each_bad_folder_has_one_clear_message(make_folder, damage, reason):
    root = make_folder(train=(3, 3), test=(1, 1))
    damage(root)
    with pytest.raises(DataError, match=reason) as failure:
        load(root)
    assert failure.value.fix


def test_too_few_images_to_hold_any_out(make_folder):
    with pytest.raises(DataError, match="2 training images are too few"):
        load(make_folder(train=(1, 1), test=(1, 1)))


def test_a_folder_over_the_cache_limit_streams(make_folder):
    root = make_folder(train=(10, 10), test=(3, 2))
    cached, streamed = load(root), load(root, cache_bytes=100)
    assert isinstance(streamed, StreamingImages)
    assert streamed.card == cached.card
    for split in ("train", "val", "test"):
        assert torch.equal(streamed.labels(split), cached.labels(split))
    torch.testing.assert_close(streamed.images("test", 5)[0], cached.images("test", 5)[0])


def test_a_pipe_is_refused_instead_of_waited_for(make_folder):
    root = make_folder(train=(9, 9), test=(2, 2))
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png is no regular file"):
        load_data(f"imagefolder:{root}")


def test_a_folder_that_holds_itself_is_read_once(make_folder):
    root = make_folder(train=(9, 9), test=(2, 2))
    before = load_data(f"imagefolder:{root}").card.counts
    (root / "train" / "cat" / "again").symlink_to(root / "train" / "cat")
    assert load_data(f"imagefolder:{root}").card.counts == before
