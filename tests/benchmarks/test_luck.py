"""The benchmark of processes' luck: its arithmetic, and that a case can be measured."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import luck
from benchmarks.readme_luck import luck as table
from benchmarks.refill import Case


@pytest.mark.parametrize(("within", "between"), [(0.01, 0.05), (0.02, 0.0)])
def test_the_luck_of_processes_is_told_from_that_of_measurements(
    within: float, between: float
) -> None:
    generator = np.random.default_rng(0)
    logs = between * generator.standard_normal((4000, 1)) + within * generator.standard_normal(
        (4000, 2)
    )
    found = luck.spread(np.exp(logs).tolist())
    assert found["within"] == pytest.approx(within, rel=0.05)
    assert found["between"] == pytest.approx(between, rel=0.05, abs=0.003)


def test_a_case_is_measured_and_told() -> None:
    case = Case("wgates:resnet20", 16, 0.5, "ort-cpu")
    bench, widths = luck._bench(case)
    with bench:
        ratio = bench.row(widths).ratio
    assert 0.1 < ratio < 0.9
    cases = {case.name: luck.spread([[ratio, ratio]] * 3)}
    result = {"times": 2, "processes": 3, "plans": {"fewest": 4, "most": 12}, "cases": cases}
    assert "| resnet20, 0.5 of its channels, ort-cpu | 0.0% | 0.0% |" in table(result)
