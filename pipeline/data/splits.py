"""Seeded orders and splits of labels; numpy only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError

SPLIT_SEED = 0  # splits never change with the seed of a run, or test images would leak into train
HELD_OUT_SHARE = 0.1
HELD_OUT_MOST = 5000


def stratified_order(labels: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """A permutation (n,) of which every prefix holds the classes in their overall shares."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    place = np.arange(len(labels)) - np.repeat(starts, sizes)
    rank = (place + 0.5) / np.repeat(sizes, sizes)
    # equal ranks of different classes are ordered by chance, not by label
    order: NDArray[np.int64] = by_class[np.lexsort((rng.random(len(labels)), rank))]
    return order


def stratified_parts(labels: NDArray[np.int64], sizes: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """Disjoint stratified index sets of the given sizes, then the rest; each in rising order."""
    order = stratified_order(labels, seed=SPLIT_SEED)
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes))]


def hold_out(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(train, val) indices: 10 % of the images, at most 5000, become the validation split."""
    size = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(labels))))
    val, train = stratified_parts(labels, (size,))
    if len(np.unique(labels[train])) < len(np.unique(labels)):
        raise DataError(
            f"{len(labels)} training images are too few to hold a validation split out",
            fix="add images, or a val/ folder",
        )
    return train, val


def epoch_indices(
    n: int, batch_size: int, *, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """One shuffled epoch in batches; a last batch of one is dropped, as BatchNorm refuses it."""
    yield from in_batches(rng.permutation(n), batch_size)


def in_batches(order: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """The order (n,) in batches; a last batch of one is dropped."""
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        if len(batch) > 1 or batch_size == 1:
            yield batch
