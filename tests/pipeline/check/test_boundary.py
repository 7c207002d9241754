"""The sequential sign test: its error rate is exact, and its intervals hold at every look."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from pipeline.check.boundary import ERROR_RATE, Boundary, spent_error


def ever_reached(boundary: Boundary, above: np.ndarray) -> np.ndarray:
    """Which rows (checks, n) of "this value lies above" ever reach the boundary."""
    needed = np.array([n + 1 if c is None else c for n, c in enumerate(boundary.needed, 1)])
    return np.asarray((np.cumsum(above, axis=1) >= needed).any(axis=1))


@pytest.mark.parametrize("error_rate", [0.005, 0.05, 0.2])
def test_error_is_that_of_all_walks_of_a_fair_coin(error_rate: float) -> None:
    boundary = Boundary.of(14, error_rate)
    walks = np.array(list(product((0, 1), repeat=14)))
    share = float(ever_reached(boundary, walks).mean())
    assert share == pytest.approx(spent_error(14, error_rate), abs=1e-12)
    assert 0.5 * error_rate < share <= error_rate


@pytest.mark.parametrize("most", [9, 20, 40, 120])
def test_most_of_the_error_rate_is_spent_and_no_more(most: int) -> None:
    assert 0.75 * ERROR_RATE < spent_error(most) <= ERROR_RATE
    assert 8 <= Boundary.of(most).fewest <= 11


@pytest.mark.parametrize("law", ["standard_normal", "standard_cauchy", "exponential"])
def test_false_alarms_at_the_limit_itself_stay_below_one_in_a_hundred(law: str) -> None:
    """The worst case of all: the true median is the limit."""
    boundary = Boundary.of(40)
    values = getattr(np.random.default_rng(1), law)(size=(40_000, 40))
    median = np.log(2) if law == "exponential" else 0.0
    alarms = float(ever_reached(boundary, values > median).mean())
    passes = float(ever_reached(boundary, values < median).mean())
    # three standard errors of such a share of 40 000 are 0.1 %
    assert alarms <= ERROR_RATE + 0.001
    assert passes <= ERROR_RATE + 0.001
    assert min(alarms, passes) > 0.003


def test_intervals_cover_at_all_looks_together() -> None:
    boundary = Boundary.of(40)
    generator = np.random.default_rng(2)
    missed = 0
    for _ in range(1500):
        values = generator.standard_t(2, 40)
        intervals = [boundary.interval(values[:n]) for n in range(boundary.fewest, 41)]
        missed += any(low > 0 or high < 0 for low, high in intervals if low is not None)
    assert missed / 1500 <= 0.01 + 3 * np.sqrt(0.01 / 1500)


def test_an_interval_lies_above_a_limit_where_enough_values_do() -> None:
    boundary = Boundary.of(40)
    generator = np.random.default_rng(3)
    for n in range(boundary.fewest, 41):
        values = generator.standard_normal(n) + 0.6
        interval = boundary.interval(values)
        assert interval is not None
        needed = boundary.needed[n - 1]
        assert needed is not None
        assert (interval[0] > 0) == ((values > 0).sum() >= needed)
        assert (interval[1] < 0) == ((values < 0).sum() >= needed)


def test_too_few_values_have_no_interval() -> None:
    boundary = Boundary.of(40)
    assert boundary.interval([]) is None
    assert boundary.interval([1.0] * (boundary.fewest - 1)) is None
    assert boundary.interval([1.0] * boundary.fewest) == (1.0, 1.0)


@pytest.mark.parametrize(("most", "rate"), [(0, 0.01), (10, 0.0), (10, 0.5)])
def test_what_is_no_boundary_is_refused(most: int, rate: float) -> None:
    with pytest.raises(ValueError, match="no boundary"):
        Boundary.of(most, rate)
