"""The benchmark of processes' luck: its arithmetic, and that a case can be measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import luck
from benchmarks.refill import Case
from benchmarks.table_luck import luck as table


@pytest.mark.parametrize(("within", "between"), [(0.01, 0.05), (0.02, 0.0)])
def test_the_luck_of_processes_is_told_from_that_of_measurements(
    within: float, between: float
) -> None:
    generator = np.random.default_rng(0)
    logs = between * generator.standard_normal((4000, 1)) + within * generator.standard_normal(
        (4000, 2)
    )
    found = luck.spread(np.exp(logs).tolist())
    assert found[0] == pytest.approx(within, rel=0.05)
    assert found[1] == pytest.approx(between, rel=0.05, abs=0.003)


def test_a_case_is_measured_together_and_apart(tmp_path: Path) -> None:
    subject = luck._subject(Case("wgates:resnet20", 16, 0.5, "ort-cpu"), tmp_path)
    for found, count in ((subject.together(2), 2), (subject.apart(), 1)):
        assert len(found.ratios) == count
        assert all(0.1 < ratio < 0.9 for ratio in found.ratios)
        assert 0.05 < found.seconds < 60


def test_a_minute_of_short_rounds_tells_more_where_processes_differ() -> None:
    together = [luck.Timed([0.5, 0.5], seconds=5.0), luck.Timed([0.52, 0.52], seconds=5.0)] * 2
    apart = [luck.Timed(each.ratios[:1], seconds=1.25) for each in together]
    found = luck.case(together, apart)
    assert found["within"] == 0.0
    assert found["between"] == pytest.approx(found["apart"])
    assert found["minute"] == pytest.approx(1.96 * found["between"] / 12**0.5)
    assert found["apart_minute"] == pytest.approx(found["minute"] / 2)
    cases = {"resnet20": found}
    result = {"times": 2, "processes": 4, "plans": {"fewest": 6, "most": 36}, "cases": cases}
    assert "| resnet20 | 0.0% | 2.3% | 1.3% (5.0) | 0.6% (1.2) | 1.000 (0.969 to 1.032) |" in table(
        result
    )
