"""WebDataset shards: real images in tar files, and every kind of damage."""

import io
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.data.members import Member
from pipeline.data.memory import InMemoryImages
from pipeline.data.shards import expanded
from pipeline.data.sources import load_data
from pipeline.data.streaming import StreamingImages
from pipeline.errors import DataError

DIGITS = load_digits()


def jpeg(index):
    """A handwritten digit, 16 pixels square."""
    pixels = (DIGITS.images[index] * 15).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    file = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(file, "JPEG", quality=95)
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample(index):
    key = f"{index:06d}"
    return [
        (f"{key}.jpg", jpeg(index)),
        (f"{key}.cls", str(DIGITS.target[index]).encode()),
        (f"{key}.json", b"{}"),
    ]


@pytest.fixture
def shards(tmp_path):
    """60 training images in 3 shards, 20 for validation, 20 for the test."""
    root = tmp_path / "shards"
    root.mkdir()
    starts = {"train-00": 0, "train-01": 20, "train-02": 40, "validation-00": 60, "test-00": 80}
    for name, start in starts.items():
        images = [part for index in range(start, start + 20) for part in sample(index)]
        write_tar(root / f"d-{name}.tar", images)
    return root


def load(place, **options):
    return load_data(f"webdataset:{place}", **options)


def test_shards_are_read_like_files(shards):
    data = load(shards)
    assert isinstance(data, InMemoryImages)
    assert data.card.name == "webdataset:shards"
    assert data.card.classes == tuple("0123456789")
    assert data.card.image_shape == (3, 16, 16)
    assert dict(data.card.counts) == {"train": 60, "val": 20, "test": 20}
    assert data.labels("val").tolist() == DIGITS.target[60:80].tolist()
    for split, start in {"val": 60, "test": 80}.items():
        decoded = [np.asarray(Image.open(io.BytesIO(jpeg(start + n)))) for n in range(20)]
        pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.card.mean, data.card.std))
        torch.testing.assert_close(data.take(split, torch.arange(20)), (pixels - mean) / std)


def test_large_shards_stream_with_workers(shards):
    cached, alone = load(shards), load(shards, cache_bytes=0, workers=0)
    helped = load(shards, cache_bytes=0, workers=2)
    assert isinstance(helped, StreamingImages)
    for split in ("train", "test"):
        expected, labels = cached.images(split, 10)
        images, found = helped.images(split, 10)
        assert torch.equal(images, expected)
        assert torch.equal(labels, found)
    options = {"seed": 1, "epoch": 0}
    epochs = [list(data.train_batches(16, **options)) for data in (alone, helped)]
    assert sum(len(labels) for _, labels in epochs[1]) == 60
    for (images, labels), (again, same) in zip(*epochs, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)


def test_the_digest_is_of_what_is_in_the_shards(shards):
    before = load(shards).card.digest
    shutil.copytree(shards, shards.parent / "copy")
    assert load(shards.parent / "copy").card.digest == before
    write_tar(shards / "d-test-00.tar", sample(80))
    assert load(shards).card.digest != before


def test_patterns(shards):
    everything = load(shards).card.counts
    assert load(f"{shards}/d-{{split}}-*.tar").card.counts == everything
    some = load(f"{shards}/d-{{split}}-{{00..00}}.tar").card.counts
    assert some == {"train": 20, "val": 20, "test": 20}
    folders = shards.parent / "folders"
    for split in ("train", "val"):
        (folders / split).mkdir(parents=True)
    for path in shards.glob("*train*"):
        shutil.copy(path, folders / "train" / path.name.replace("train", "part"))
    shutil.copy(shards / "d-test-00.tar", folders / "val" / "part-00.tar")
    # with one of val and test that one is the test split
    assert load(folders).card.counts == {"train": 54, "val": 6, "test": 20}


def test_a_shard_of_two_splits_is_refused(shards):
    for path in list(shards.glob("*.tar")):
        path.rename(shards / f"retrieval-{path.name.replace('validation', 'val')}")
    with pytest.raises(DataError, match=r"retrieval-d-train-00\.tar is named like shards of"):
        load(shards)
    assert load(f"{shards}/retrieval-d-{{split}}-*.tar").card.counts["val"] == 20


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("a.tar", ["a.tar"]),
        ("a{08..10}.tar", ["a08.tar", "a09.tar", "a10.tar"]),
        ("{x,y}{1..2}", ["x1", "x2", "y1", "y2"]),
    ],
)
def test_braces(pattern, texts):
    assert expanded(pattern) == texts


def test_class_names_beside_the_shards(shards):
    (shards / "classes.txt").write_text("".join(f"digit {n}\n" for n in range(10)))
    assert load(shards).card.classes[9] == "digit 9"
    (shards / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="train has images of 10 classes, where there are 2"):
        load(shards)


def test_a_corrupt_image_is_skipped_by_name(shards):
    damaged = sample(0)
    damaged[0] = ("000000.jpg", jpeg(0)[:200])
    others = [part for index in range(1, 200) for part in sample(index)]
    write_tar(shards / "d-train-00.tar", damaged + others)
    for cache_bytes in (2**30, 0):
        card = load(shards, cache_bytes=cache_bytes, workers=0).card
        assert card.counts["train"] == 239
        assert card.skipped == ("d-train-00.tar@512",)


def test_a_member_is_a_file(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(b"0123456789")
    member = Member(path, 2, 5, ".jpg")
    with member.open() as file:
        assert file.read() == b"23456"
        assert file.read() == b""
        assert file.seek(-2, 2) == 3
        assert file.read(100) == b"56"
        file.seek(1)
        assert file.read(2) == b"34"


def gone(root):
    shutil.rmtree(root)


def no_train(root):
    for path in root.glob("*train*"):
        path.unlink()


def only_train(root):
    for path in [*root.glob("*validation*"), *root.glob("*test*")]:
        path.unlink()


def no_tar(root):
    (root / "d-train-01.tar").write_bytes(b"hello" * 1000)


def truncated(root):
    path = root / "d-train-01.tar"
    path.write_bytes(path.read_bytes()[:5000])


def compressed(root):
    with tarfile.open(root / "d-train-01.tar", "w:gz") as tar:
        tar.add(root / "d-train-00.tar", "000001.jpg")


def no_label(root):
    write_tar(root / "d-train-01.tar", sample(1)[:1])


def no_image(root):
    write_tar(root / "d-train-01.tar", sample(1)[1:])


def nothing(root):
    write_tar(root / "d-train-01.tar", [("readme.txt", b"hello")])


def word(root):
    write_tar(root / "d-train-01.tar", [("1.jpg", jpeg(1)), ("1.cls", b"seven")])


def long_label(root):
    write_tar(root / "d-train-01.tar", [("1.jpg", jpeg(1)), ("1.cls", b"1" * 10**6)])


def link(root):
    with tarfile.open(root / "d-train-01.tar", "w") as tar:
        info = tarfile.TarInfo("1.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(info)


def gap(root):
    write_tar(root / "d-train-01.tar", [("1.jpg", jpeg(1)), ("1.cls", b"99")])


def other_class(root):
    write_tar(root / "d-test-00.tar", [("1.jpg", jpeg(1)), ("1.cls", b"10")])


BAD_SHARDS = {
    gone: r"is no folder, and has no \{split\}",
    no_train: "has no shards for train",
    only_train: "has no shards for val or test",
    no_tar: r"d-train-01\.tar is no tar file, or damaged",
    truncated: r"d-train-01\.tar is no tar file, or damaged",
    compressed: r"d-train-01\.tar is no tar file, or damaged, or compressed",
    no_label: r"d-train-01\.tar: '000001' has no \.cls",
    no_image: r"d-train-01\.tar: '000001' has no image",
    nothing: r"d-train-01\.tar holds no images",
    word: r"'1\.cls' holds no class, but b'seven'",
    long_label: r"'1\.cls' holds no class, but b'1111",
    link: r"'1\.jpg' is a link or the like",
    gap: "train has images of 11 classes, where there are 100",
    other_class: "test has class 10, train has 0 to 9",
}


@pytest.mark.parametrize(
    ("damage", "reason"), BAD_SHARDS.items(), ids=[damage.__name__ for damage in BAD_SHARDS]
)
def test_each_bad_shard_has_one_clear_message(shards, damage, reason):
    damage(shards)
    with pytest.raises(DataError, match=reason) as failure:
        load(shards)
    assert failure.value.fix


def test_a_missing_shard_of_a_pattern_is_named(shards):
    with pytest.raises(DataError, match=r"there is no .*d-train-03\.tar"):
        load(f"{shards}/d-{{split}}-{{00..03}}.tar")
    with pytest.raises(DataError, match="is no range of numbers"):
        load(f"{shards}/d-{{split}}-{{a..c}}.tar")
