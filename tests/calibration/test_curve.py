from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from calibration.active import Array, Predict
from calibration.curve import FEWEST, FIRST, error_curve
from calibration.database import LatencyRecord
from calibration.sampling import first_widths
from calibration.widths import ChannelGroups

from .chain import chain
from .laws import bilinear_fit, records_of


@pytest.fixture(scope="module")
def groups() -> ChannelGroups:
    return chain((32, 64, 64, 128, 64)).groups


def law(kept: Array) -> Array:
    products = kept[:, 1:] * kept[:, :-1]
    return np.asarray(30 + kept.sum(1) + 0.02 * products.sum(1))


def test_both_begin_and_end_alike_and_the_error_falls(groups: ChannelGroups) -> None:
    records = records_of(groups, first_widths(groups, 8, 160, seed=0), law, noise=0.001)
    found = error_curve(records, bilinear_fit, seed=0)
    assert found[0].samples == FIRST
    assert 115 <= found[-1].samples <= 125  # the rest is the test
    assert [point.samples for point in found] == sorted({point.samples for point in found})
    for point in (found[0], found[-1]):
        assert point.active == point.random
    assert found[-1].active < found[0].active
    assert any(point.active != point.random for point in found[1:-1])
    assert error_curve(records, bilinear_fit, seed=0) == found


def test_few_records_make_no_curve(groups: ChannelGroups) -> None:
    few = records_of(groups, first_widths(groups, 8, FEWEST - 1, seed=0), law)
    assert error_curve(few, bilinear_fit, seed=0) == ()


def test_the_curve_ends_when_its_time_is_up(groups: ChannelGroups) -> None:
    records = records_of(groups, first_widths(groups, 8, 100, seed=0), law)
    assert len(error_curve(records, bilinear_fit, seed=0, limit_s=0.0)) == 1


def test_every_split_tests_other_networks(groups: ChannelGroups) -> None:
    records = records_of(groups, first_widths(groups, 8, 100, seed=0), law, noise=0.002)
    pools: set[frozenset[int]] = set()

    def watching(seen: Sequence[LatencyRecord]) -> Predict:
        if len(seen) > 70:
            pools.add(frozenset(records.index(record) for record in seen))
        return bilinear_fit(seen)

    error_curve(records, watching, seed=0)
    tested = [set(range(100)) - pool for pool in pools if len(pool) == 76]
    assert len(tested) == 4
    assert len(set.union(*tested)) == sum(map(len, tested)) == 96
