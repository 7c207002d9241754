"""Image folders too large for memory: decoded on the fly by worker processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from pipeline.data.base import WHOLE, DataCard, ImageData, Part, Split
from pipeline.data.decode import CORRUPT, Size, fit, open_rgb, processors
from pipeline.data.members import Place
from pipeline.data.memory import BatchAugment
from pipeline.data.rand_augment import rand_augment
from pipeline.data.splits import epoch_indices
from pipeline.errors import DataError, loader_faults_told

Item = tuple[Tensor, int]
CORRUPT_LABEL = -1

FileSplit = tuple[Sequence[Place], Tensor]  # images and their labels (n,)


@dataclass(frozen=True, eq=False)
class _Files(Dataset[Item]):
    """Items (uint8 (3, H, W), label), augmented if asked; the label of a corrupt file is -1.

    An error raised in a worker would reach the user as the worker's traceback, hence the label.
    """

    files: FileSplit
    size: Size
    augment: v2.Transform | None = None
    seeds: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.files[0])

    def __getitem__(self, index: int) -> Item:
        paths, labels = self.files
        try:
            image = open_rgb(paths[index])
        except CORRUPT:
            return torch.zeros((3, *self.size), dtype=torch.uint8), CORRUPT_LABEL
        if self.augment is None:
            return _pixels(fit(image, self.size)), int(labels[index])
        # a seed per image: the result does not depend on which worker draws it, or how many work
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seeds[index])
            return _pixels(self.augment(image)), int(labels[index])


class StreamingImages(ImageData):
    """Splits of image files, read again each epoch; `workers` 0 reads in this process."""

    def __init__(
        self, card: DataCard, splits: Mapping[Split, FileSplit], *, workers: int | None = None
    ) -> None:
        self.card = card
        self._splits = dict(splits)
        self._size = card.image_shape[1:]
        self._augment = _training_transform(card.augment, self._size)
        self._workers = processors() if workers is None else workers
        self._mean = torch.tensor(card.mean).view(-1, 1, 1)
        self._std = torch.tensor(card.std).view(-1, 1, 1)

    def on(self, device: torch.device) -> StreamingImages:
        """The same images; pixels travel as bytes and become numbers on a GPU."""
        moved = copy(self)
        moved._mean, moved._std = self._mean.to(device), self._std.to(device)
        return moved

    def labels(self, split: Split) -> Tensor:
        """Labels (n,) int64 of the split, in its order."""
        return self._splits[split][1]

    def take(self, split: Split, indices: Tensor) -> Tensor:
        """Images (len(indices), C, H, W) float32, normalised, not augmented."""
        files = _Files(self._splits[split], self._size)
        if len(indices) == 0:
            return torch.empty((0, *self.card.image_shape))
        items = [files[index] for index in indices.tolist()]
        _require_decoded(files, indices.tolist(), [label for _, label in items])
        return self._normalised(torch.stack([image for image, _ in items]).to(self._mean.device))

    def batches_part(
        self, split: Split, batch_size: int, part: Part
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the split in order, decoded by the workers."""
        n = self.size(split)
        plan = [list(range(at, min(at + batch_size, n))) for at in range(0, n, batch_size)]
        wanted = plan[part.start + part.rank :: part.of]
        yield from self._load(_Files(self._splits[split], self._size), wanted)

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, augmented and normalised batches, the same for the same (seed, epoch)."""
        return self.train_part(batch_size, seed=seed, epoch=epoch, part=WHOLE)

    def train_part(
        self, batch_size: int, *, seed: int, epoch: int, part: Part
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Those batches from `part.start` on, of each every `part.of`-th image."""
        rng = np.random.default_rng((seed, epoch))
        seeds = rng.integers(2**62, size=self.size("train")).tolist()
        batches = islice(epoch_indices(len(seeds), batch_size, rng=rng), part.start, None)
        plan = [indices[part.rank :: part.of].tolist() for indices in batches]
        files = _Files(self._splits["train"], self._size, augment=self._augment, seeds=seeds)
        yield from self._load(files, plan)

    def _load(self, files: _Files, plan: list[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        loader = self._loader(files, plan)
        with loader_faults_told():
            for indices, (images, labels) in zip(plan, loader, strict=True):
                _require_decoded(files, indices, labels.tolist())
                yield self._normalised(images.to(self._mean.device, non_blocking=True)), labels

    def _loader(self, files: _Files, plan: list[list[int]]) -> Iterator[list[Tensor]]:
        with warnings.catch_warnings():
            # more workers than processors are what was asked for
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader = DataLoader(
                files,
                batch_sampler=plan,
                num_workers=min(self._workers, len(plan)),
                worker_init_fn=_quiet_worker,
                pin_memory=self._mean.device.type == "cuda",
                # it draws a seed for its workers; the global generator stays untouched
                generator=torch.Generator(),
            )
            return iter(loader)

    def _normalised(self, images: Tensor) -> Tensor:
        return images.float().sub_(self._mean * 255).div_(self._std * 255)


def _training_transform(names: tuple[str, ...], size: Size) -> v2.Transform:
    rest = BatchAugment.from_names(tuple(n for n in names if n != "random-resized-crop"))
    if "random-resized-crop" in names:
        steps: list[v2.Transform] = [v2.RandomResizedCrop(size, antialias=True)]
    else:
        border = "reflect" if rest.mirrored else "constant"
        shift = v2.RandomCrop(size, padding=rest.pad, padding_mode=border)
        steps = [v2.Lambda(partial(fit, size=size)), shift]
    steps.append(v2.RandomHorizontalFlip(0.5 if rest.flip else 0.0))
    if rest.magnitude:
        steps.append(rand_augment(rest.magnitude))
    return v2.Compose(steps)


def _require_decoded(files: _Files, indices: list[int], labels: list[int]) -> None:
    for index, label in zip(indices, labels, strict=True):
        if label == CORRUPT_LABEL:
            raise DataError(
                f"{files.files[0][index]} cannot be decoded", fix="remove it or fetch it again"
            )


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _quiet_worker(worker: int) -> None:
    warnings.simplefilter("ignore")  # Pillow on broken EXIF text; this process only decodes
    torch.set_num_threads(1)
