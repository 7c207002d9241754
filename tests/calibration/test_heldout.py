from __future__ import annotations

import math

import numpy as np
import pytest

from calibration.database import LatencyRecord
from calibration.heldout import HeldOutError, conformal, judges_of, outer_folds
from calibration.widths import WidthVector


def test_errors_by_hand() -> None:
    measured = np.array([1.0, 2.0, 3.0, 4.0])
    predicted = measured * np.array([1.0, 1.04, 0.92, 1.2])
    found = HeldOutError.of(predicted, measured)
    assert found.records == 4
    assert found.mean == pytest.approx((0.04 + 0.08 + 0.2) / 4)
    assert (found.within_5, found.within_10, found.spearman) == (0.5, 0.75, 1.0)
    assert found.interval_90 == pytest.approx(math.log(1.2))  # too few for less than the largest


def test_a_new_size_stays_within_the_conformal_one_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    inside = [conformal(s[:-1], 0.9) >= s[-1] for s in rng.exponential(1, (4000, 40))]
    assert 0.89 <= np.mean(inside) <= 0.93


def test_every_record_is_held_out_once() -> None:
    folds = outer_folds(103, seed=1)
    assert sorted(np.bincount(folds)) == [20, 20, 21, 21, 21]
    assert (folds == outer_folds(103, seed=1)).all()


# --- judges ------------------------------------------------------------------------------------

FULL = WidthVector(("a", "b", "c"), (32, 32, 32))


def record(kept: tuple[int, ...], anchor_ms: float = 4.0) -> LatencyRecord:
    widths, ends = WidthVector(FULL.groups, kept), (0.49, 0.51)
    return LatencyRecord(widths, 0.5, ends, anchor_ms, 0.5 * anchor_ms, ())


JOINT = [record((8 * (index % 4 + 1), 16, 24)) for index in range(12)]
SWEEP = [record((32, 8 * (index % 4 + 1), 32)) for index in range(12)]


def test_nearly_dense_networks_do_not_tell_how_wrong_a_predictor_is() -> None:
    judges = judges_of([*SWEEP, *JOINT, record(FULL.kept)], FULL, fewest=10)
    assert judges.tolist() == [False] * 12 + [True] * 12 + [False]


def test_nor_do_disturbed_ones_unless_hardly_any_is_left() -> None:
    disturbed = [record((8, 8, 8), anchor_ms=6.0)] * 5
    records = [*JOINT, *disturbed]
    assert judges_of(records, FULL, fewest=10).tolist() == [True] * 12 + [False] * 5
    assert judges_of(records, FULL, fewest=13).all()


def test_where_only_single_groups_are_narrow_they_are_the_judges() -> None:
    assert judges_of(SWEEP, FULL, fewest=10).all()
