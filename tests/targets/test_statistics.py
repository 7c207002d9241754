from __future__ import annotations

import numpy as np
import pytest

from targets.statistics import (
    bootstrap_ci95,
    bootstrap_interval,
    percentile_of,
    required_samples,
    student_quantile,
)


def test_the_bootstrap_interval_is_repeatable_and_known() -> None:
    assert bootstrap_ci95([3.0] * 7) == (3.0, 3.0)
    values = list(range(1, 102))
    low, high = bootstrap_ci95(values)
    assert (low, high) == bootstrap_ci95(values)
    # the order statistics 41 and 61 bound the median of 101 values at 95 %
    assert 39 <= low <= 43
    assert 59 <= high <= 63


def test_the_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(10.0, 2.0, 400)
    low, high = bootstrap_ci95(values, np.mean)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_the_interval_of_few_values_covers_as_often_as_that_of_many() -> None:
    generator = np.random.default_rng(4)
    for n, fewest in ((8, 0.93), (30, 0.92)):
        drawn = generator.standard_normal((300, n))
        intervals = [bootstrap_ci95(row, resamples=400) for row in drawn]
        assert fewest <= np.mean([low <= 0.0 <= high for low, high in intervals]) <= 0.99


@pytest.mark.parametrize(("freedom", "quantile"), [(3, 3.182), (7, 2.365), (30, 2.042)])
def test_students_quantiles_agree_with_tables(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, rel=0.01)


def test_a_wider_interval_is_surer() -> None:
    values = np.random.default_rng(0).standard_normal(12)
    low, high = bootstrap_interval(values, confidence=0.8)
    lower, higher = bootstrap_interval(values, confidence=0.999)
    middle = bootstrap_interval(values)
    assert values.min() <= lower < middle[0] < low
    assert high < middle[1] < higher <= values.max()
    assert middle == bootstrap_ci95(values)


def test_the_bootstrap_in_pieces_covers_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.statistics._DRAWS_AT_ONCE", 25)
    drawn: list[int] = []

    def statistic(rows: np.ndarray, axis: int) -> np.ndarray:
        drawn.append(len(rows))
        return np.asarray(rows.mean(axis=axis))

    bootstrap_ci95(range(10), statistic, resamples=7)
    assert drawn == [2, 2, 2, 1]


def test_the_bootstrap_needs_values() -> None:
    with pytest.raises(ValueError, match="list of values"):
        bootstrap_ci95([])


def test_percentiles_need_samples() -> None:
    assert required_samples(99) == 299
    assert required_samples(90) == 29
    with pytest.raises(ValueError, match="p99 needs 299 samples; there are 298"):
        percentile_of(np.ones(298), 99)
    assert percentile_of(np.arange(300.0), 99) == pytest.approx(296.01)
    with pytest.raises(ValueError, match="between 0 and 100"):
        percentile_of(np.ones(9), 100)
