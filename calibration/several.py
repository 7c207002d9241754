"""A latency from several measuring processes, for the few networks that must be known well.

Where a process's memory comes to lie stays its own: two loads in it share most of that luck, and
so do all that it compares. So each process is asked briefly, and many of them are: a longer look at
one tells little more about the network (benchmarks/luck.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.isolated import IsolatedBench
from calibration.pace import calmer_half
from calibration.phases import Phases
from calibration.rows import Row
from calibration.widths import WidthVector
from targets.fingerprint import Fingerprint
from targets.timing import relative_half

FEWEST, MOST = 6, 36
PLAN_PRECISION = 0.006  # to which the latency of a proposed plan is to be known


def brief(precision: float) -> float:
    """How well one process must know what all that may be called together know to `precision`."""
    return precision * math.sqrt(MOST)


@dataclass(frozen=True)
class SeveralProcesses:
    """Does what its bench does, each time in several new processes, one after the other."""

    bench: IsolatedBench
    on_done: Callable[[int, int], None] | None = None  # given the processes so far, and the most
    # ratios that are looked for: one that surely lies elsewhere need not be known any better
    between: tuple[float, float] = (0.0, math.inf)

    @property
    def skeleton_sha256(self) -> str:
        return self.bench.skeleton_sha256

    @property
    def fingerprint(self) -> Fingerprint:
        return self.bench.fingerprint

    @property
    def phases(self) -> Phases:
        return self.bench.phases

    def row(self, widths: WidthVector, *, precision: float = 0.01) -> Row:
        """Measure one width vector until it is known to `precision`, within 6 to 36 processes."""
        rows: list[Row] = []
        each = brief(precision)
        while True:
            self.bench.renew()
            rows.append(self.bench.row(widths, precision=each))
            found = joined(rows)
            if self.on_done is not None:
                self.on_done(len(rows), MOST)
            if len(rows) >= self._enough(found, precision):
                return found

    def _enough(self, found: Row, precision: float) -> int:
        """Processes after which no more are asked."""
        if relative_half(found.ratio, found.ratio_ci95) <= precision:
            return FEWEST
        (low, high), (least, most) = found.ratio_ci95, self.between
        return 2 * FEWEST if high < least or low > most else MOST


def joined(rows: Sequence[Row]) -> Row:
    """One measurement out of those of several processes; the evidence of all is kept.

    Of the calmer half only, where that tells more: where neighbours disturbed the others.
    """
    whole = Row.joined(rows)
    if len(rows) < 2 * FEWEST:
        return whole
    candidate = np.array([row.candidate.median_ms() for row in rows])
    anchor = np.array([row.anchor_ms for row in rows])
    calmer = zip(rows, calmer_half(candidate, anchor), strict=True)
    half = Row.joined([row for row, calm in calmer if calm])
    best = min((whole, half), key=lambda row: relative_half(row.ratio, row.ratio_ci95))
    return replace(whole, ratio=best.ratio, ratio_ci95=best.ratio_ci95)
