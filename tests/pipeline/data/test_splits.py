import numpy as np
import pytest

from pipeline.data.splits import epoch_indices, hold_out, stratified_order, stratified_parts
from pipeline.errors import DataError

LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def test_every_prefix_holds_the_classes_in_their_shares():
    order = stratified_order(LABELS, seed=3)
    assert sorted(order) == list(range(100))
    for length in range(1, 101):
        counts = np.bincount(LABELS[order[:length]], minlength=3)
        assert np.abs(counts - length * np.array([0.6, 0.3, 0.1])).max() <= 1


def test_the_seed_alone_decides_the_order():
    assert np.array_equal(stratified_order(LABELS, seed=1), stratified_order(LABELS, seed=1))
    assert not np.array_equal(stratified_order(LABELS, seed=1), stratified_order(LABELS, seed=2))


def test_parts_are_disjoint_complete_and_stratified():
    parts = stratified_parts(LABELS, (20, 30))
    assert [len(part) for part in parts] == [20, 30, 50]
    assert sorted(np.concatenate(parts)) == list(range(100))
    assert [list(np.bincount(LABELS[part])) for part in parts[:2]] == [[12, 6, 2], [18, 9, 3]]


@pytest.mark.parametrize(("n", "held"), [(12, 1), (100, 10), (80_000, 5000)])
def test_hold_out_takes_a_tenth_up_to_5000(n, held):
    train, val = hold_out(np.arange(n) % 2)
    assert (len(train), len(val)) == (n - held, held)
    assert not set(train) & set(val)


def test_hold_out_never_takes_a_whole_class():
    with pytest.raises(DataError, match="2 training images are too few"):
        hold_out(np.array([0, 1]))


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (1, 4, []), (3, 1, [1, 1, 1])],
)
def test_a_last_batch_of_one_is_dropped(n, batch_size, sizes):
    batches = list(epoch_indices(n, batch_size, rng=np.random.default_rng(0)))
    assert [len(batch) for batch in batches] == sizes
    assert len({int(index) for batch in batches for index in batch}) == sum(sizes)
