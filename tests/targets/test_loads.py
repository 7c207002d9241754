from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import replace

import pytest

from targets.loads import LOADS, MOST_LOADS, Loads, over_loads
from targets.timing import Comparison
from tests.calibration.test_database import comparison as made

TIGHT = (0.999, 1.001)


def part(ratio: float) -> Comparison:
    interval = (TIGHT[0] * ratio, TIGHT[1] * ratio)
    return replace(made(ratio), ratio_ci95=interval, round_ratios=(ratio,) * 6)


def test_the_ratio_is_the_geometric_mean_of_the_loads() -> None:
    assert Loads((part(0.48), part(0.5)), 0.01).ratio == pytest.approx(math.sqrt(0.48 * 0.5))


def test_loads_that_agree_are_better_known_than_either() -> None:
    found = Loads((part(0.5), part(0.5)), 0.01)
    assert found.relative_error == pytest.approx(0.001 / math.sqrt(2), rel=0.01)
    assert found.doubts() == part(0.5).disturbances()


def test_loads_that_lie_apart_widen_the_interval() -> None:
    found = Loads((part(0.49), part(0.51)), 0.01)
    low, high = found.ratio_ci95
    assert low < 0.4901
    assert high > 0.5099
    assert "the ratio is known to 3.9% only, where 1.0% was wanted" in found.doubts()


def test_all_calls_are_kept_in_order() -> None:
    parts = (part(0.5), part(0.6))
    found = Loads(parts, 0.01)
    assert len(found.candidate) == sum(len(each.candidate) for each in parts)
    assert found.candidate.ms[-1] == parts[1].candidate.ms[-1]
    assert found.calls_per_round == parts[0].calls_per_round


def test_one_load_is_its_comparison() -> None:
    one = part(0.5)
    found = Loads((one,), 0.01)
    assert found.ratio == pytest.approx(0.5)
    assert found.ratio_ci95 == pytest.approx(one.ratio_ci95, rel=1e-5)


# --- how many ----------------------------------------------------------------------------------


def loaded(ratios: Iterable[float], *, each_s: float = 0.0, limit_s: float = 60.0) -> Loads:
    left = iter(ratios)

    def timed() -> Comparison:
        time.sleep(each_s)
        return part(next(left))

    return over_loads(timed, precision=0.01, limit_s=limit_s)


def test_loads_that_agree_are_enough() -> None:
    assert len(loaded((0.5, 0.501, 0.9)).parts) == LOADS


def test_loads_that_lie_apart_call_for_more_until_the_ratio_is_known() -> None:
    found = loaded((0.50, 0.52, 0.51, 0.51, 0.9, 0.9))
    assert [part.ratio for part in found.parts] == [0.50, 0.52, 0.51, 0.51]
    assert not found.lie_apart


def test_no_network_is_loaded_for_ever() -> None:
    assert len(loaded(itertools.cycle((0.4, 0.6))).parts) == MOST_LOADS


def test_no_more_loads_than_the_time_allows() -> None:
    assert len(loaded(itertools.cycle((0.4, 0.6)), each_s=0.02, limit_s=0.03).parts) == LOADS
