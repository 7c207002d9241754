"""How many processes a network that must be known well is timed in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from calibration.isolated import IsolatedBench
from calibration.phases import Phases
from calibration.rows import Row
from calibration.several import FEWEST, MOST, SeveralProcesses, joined
from calibration.widths import WidthVector
from targets.samples import Samples

from .test_database import FINGERPRINT, SKELETON, comparison

WIDTHS = WidthVector(("conv",), (8,))


class Bench:
    """Each of its processes finds its own ratio, known to 0.1 %."""

    skeleton_sha256, fingerprint = SKELETON, FINGERPRINT

    def __init__(self, ratios: Iterable[float]) -> None:
        self.phases, self._ratios, self.rows = Phases(), iter(ratios), list[Row]()
        self._ratio = math.nan

    def renew(self) -> None:
        self._ratio = next(self._ratios)

    def row(self, widths: WidthVector, *, precision: float) -> Row:
        interval = (0.999 * self._ratio, 1.001 * self._ratio)
        found = replace(comparison(1), ratio=self._ratio, ratio_ci95=interval)
        self.rows.append(Row.of(SKELETON, FINGERPRINT, widths, found))
        return self.rows[-1]


def several(
    ratios: Iterable[float], between: tuple[float, float] = (0.0, math.inf)
) -> tuple[Row, list[Row]]:
    bench = Bench(ratios)
    told: list[tuple[int, int]] = []
    measurer = SeveralProcesses(
        cast("IsolatedBench", bench), lambda *done: told.append(done), between
    )
    assert (measurer.skeleton_sha256, measurer.fingerprint) == (SKELETON, FINGERPRINT)
    found = measurer.row(WIDTHS, precision=0.01)
    assert told == [(done, MOST) for done in range(1, len(bench.rows) + 1)]
    return found, bench.rows


def test_processes_that_agree_are_soon_enough() -> None:
    found, rows = several(itertools.cycle((0.50, 0.501)))
    assert len(rows) == FEWEST
    assert found.ratio == pytest.approx(math.sqrt(0.50 * 0.501))


def test_processes_with_unlike_luck_call_for_more() -> None:
    found, rows = several((0.49, 0.51, 0.49, 0.51, *[0.5] * MOST))
    assert FEWEST < len(rows) < MOST
    low, high = found.ratio_ci95
    assert high - low == pytest.approx(0.01, rel=0.15)
    assert low < 0.5 < high


@pytest.mark.parametrize(
    ("between", "fewer"),
    [((0.5, 0.6), False), ((0.4, 0.5), False), ((0.6, 0.7), True), ((0.3, 0.4), True)],
)
def test_what_surely_is_not_looked_for_need_not_be_known_well(
    between: tuple[float, float], fewer: bool
) -> None:
    _, rows = several(itertools.cycle((0.47, 0.53)), between)
    assert len(rows) == (2 * FEWEST if fewer else MOST)


def test_processes_that_neighbours_disturbed_do_not_count() -> None:
    calm, slowed = (Row.of(SKELETON, FINGERPRINT, WIDTHS, comparison(1)) for _ in range(2))
    slowed = replace(
        slowed,
        ratio=1.3 * calm.ratio,
        ratio_ci95=(1.29 * calm.ratio, 1.31 * calm.ratio),
        candidate=slower(calm.candidate, 1.5),
        anchor=slower(calm.anchor, 1.15),
    )
    found = joined([calm, calm, slowed] * FEWEST)
    assert found.ratio == pytest.approx(calm.ratio)
    assert len(found.anchor) == 3 * FEWEST * len(calm.anchor)
    assert joined([calm, slowed]).ratio == pytest.approx(math.sqrt(1.3) * calm.ratio)


def slower(samples: Samples, factor: float) -> Samples:
    return replace(samples, wall_ns=np.round(factor * samples.wall_ns).astype(np.int64))


def test_no_network_is_timed_for_ever() -> None:
    found, rows = several(itertools.cycle((0.4, 0.6)))
    assert len(rows) == MOST
    assert found.ratio == pytest.approx(math.sqrt(0.4 * 0.6))


def test_the_evidence_of_all_processes_is_kept() -> None:
    found, rows = several([0.5] * FEWEST)
    wall_ns = np.concatenate([row.candidate.wall_ns for row in rows])
    assert found.candidate.wall_ns.tolist() == wall_ns.tolist()
    assert len(found.anchor) == sum(len(row.anchor) for row in rows)
    assert found.doubts == rows[0].doubts  # each once
    assert found.widths == WIDTHS
