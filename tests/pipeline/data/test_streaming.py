import subprocess
import sys

import pytest
import torch

from pipeline.data.base import DataCard
from pipeline.data.streaming import StreamingImages
from pipeline.errors import DataError


@pytest.fixture
def make_stream(make_folder):
    def make(*, size, augment, workers):
        root = make_folder(train=(5, 4), test=(2, 2), size=(size + 10, size + 4))
        files = {
            split: (paths, torch.tensor([int(path.parent.name == "dog") for path in paths]))
            for split in ("train", "test")
            if (paths := sorted((root / split).rglob("*.jpg")))
        }
        card = DataCard(
            name="made",
            classes=("cat", "dog"),
            image_shape=(3, size, size),
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            counts={"train": 9, "test": 4},
            skipped=(),
            digest="",
            augment=augment,
        )
        return [StreamingImages(card, files, workers=count) for count in workers], root

    return make


def epoch(data, **options):
    return list(data.train_batches(4, **{"seed": 1, "epoch": 2, **options}))


@pytest.mark.parametrize(
    ("size", "augment"), [(64, ("random-resized-crop", "flip")), (16, ("crop:2", "flip"))]
)
def test_an_epoch_is_the_same_with_any_number_of_workers(make_stream, size, augment):
    (alone, helped), _ = make_stream(size=size, augment=augment, workers=(0, 2))
    first = epoch(alone)
    assert [images.shape for images, _ in first] == [(4, 3, size, size)] * 2  # the ninth is dropped
    for (images, labels), (again, labels_again) in zip(first, epoch(helped), strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)
    for other in ({"seed": 2}, {"epoch": 3}):
        assert not torch.equal(first[0][0], epoch(alone, **other)[0][0])


def test_an_image_is_augmented_anew_each_epoch(make_stream):
    (data,), _ = make_stream(size=64, augment=("random-resized-crop",), workers=(0,))
    seen = [
        image.numpy().tobytes()
        for number in range(3)
        for images, _ in epoch(data, epoch=number)
        for image in images
    ]
    assert len(set(seen)) == len(seen)


def test_streaming_leaves_the_global_generator_alone(make_stream):
    (data,), _ = make_stream(size=16, augment=("crop:2",), workers=(0,))
    torch.manual_seed(5)
    epoch(data)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_batches_are_in_order_and_equal_to_take(make_stream):
    (data,), _ = make_stream(size=16, augment=(), workers=(0,))
    images, labels = (torch.cat(part) for part in zip(*data.batches("test", 3), strict=True))
    assert labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(images, data.take("test", torch.arange(4)))
    assert data.take("test", torch.arange(0)).shape == (0, 3, 16, 16)
    assert images.abs().max() <= 2  # (0..1 - 0.5) / 0.25


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_broke_after_the_check_is_named(make_stream, workers):
    (data,), root = make_stream(size=16, augment=(), workers=(workers,))
    (root / "test" / "dog" / "0000.jpg").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"dog/0000\.jpg cannot be decoded") as failure:
        list(data.batches("test", 4))
    assert "Traceback" not in str(failure.value)
    with pytest.raises(DataError, match=r"dog/0000\.jpg cannot be decoded"):
        data.take("test", torch.tensor([0, 2]))


KILLED_WORKER = """
import multiprocessing, os, signal, sys, time
from pipeline.data.sources import load_data
from pipeline.errors import DataError, loader_faults_told

data = load_data(f"imagefolder:{sys.argv[1]}", cache_bytes=0, workers=1)
try:
    with loader_faults_told():
        batches = data.train_batches(2, seed=0, epoch=0)
        next(batches)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        while True:  # torch raises wherever the program is
            time.sleep(0.1)
except DataError as error:
    print(error.message, error.fix, sep="|")
"""


def test_a_killed_worker_is_told_in_words(make_folder):
    root = make_folder(train=(9, 9), test=(2, 2))
    # in a process of its own: torch goes on raising after the first error
    command = [sys.executable, "-c", KILLED_WORKER, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "a process that decodes images died: DataLoader worker" in done.stdout, done.stderr
    assert "lower --loader-workers" in done.stdout
