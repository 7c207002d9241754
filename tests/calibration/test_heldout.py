from __future__ import annotations

import math

import numpy as np
import pytest

from calibration.heldout import HeldOutError, conformal, outer_folds


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
