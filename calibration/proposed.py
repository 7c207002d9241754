"""What prune proposes, timed well; and again where others slowed the machine meanwhile.

Neighbours may compute for minutes on end, so that all rounds of one plan are slowed alike and its
interval says nothing of it. They slow the dense network more than one that needs less memory, and
its ratio falls: a plan of ResNet-18 measured 0.243 then, 0.257 to 0.268 later. But the dense
network is the same beside all plans: where it took longer than beside the others, others computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from calibration.database import LatencyDatabase, LatencyRecord
from calibration.errors import CandidateLostError
from calibration.isolated import IsolatedBench
from calibration.measure import measure_all
from calibration.pace import CALM, may_be_off
from calibration.several import PLAN_PRECISION, Range, SeveralProcesses
from calibration.widths import WidthVector
from targets.fingerprint import Fingerprint


@dataclass(frozen=True)
class Proposed:
    """Times plans in several fresh processes each; a database keeps the quietest time of each."""

    bench: IsolatedBench
    anchor: Path  # the dense network's engine
    database: LatencyDatabase
    on_done: Callable[[int, int], None] | None = None  # given the rounds so far, and the most

    def record(
        self, widths: WidthVector, between: Range | None = None, *, insist: bool = False
    ) -> LatencyRecord:
        """Build and time the widths, or read them back; once more if that is in doubt.

        If the machine was quieter lately, since otherwise it would be as slow again; with `insist`
        whatever it was. Ratios that surely lie `between` these two, or surely elsewhere, need not
        be known better. CandidateLostError if it was never measured.
        """
        several = SeveralProcesses(self.bench, self.anchor, self.on_done, between)
        measure_all(several, self.database, [widths], precision=PLAN_PRECISION)
        known = self._known()
        if widths not in known:
            raise CandidateLostError(self.database.lost(*self._which)[widths])
        latest = list(known.values())[-1]
        quieter = latest.anchor_ms < known[widths].anchor_ms
        if self.in_doubt(widths, between) and (insist or quieter):
            with suppress(CandidateLostError):  # what is known of it stands
                again = several.row(widths, precision=PLAN_PRECISION)
                if again.anchor_ms < known[widths].anchor_ms:
                    self.database.add(again)
        return self._known()[widths]

    def in_doubt(self, widths: WidthVector, between: Range | None = None) -> bool:
        """Whether others may have moved the ratio by more than matters, in or into the range."""
        known = self._known()
        off, (low, high) = _may_be_off(known, widths), known[widths].ratio_ci95
        least, most = between or (0.0, math.inf)
        return off > CALM and high * math.exp(off) >= least and low * math.exp(-off) <= most

    def may_be_off(self, widths: WidthVector) -> float:
        """By how much at most others moved the log ratio, as far as plans timed so far tell."""
        return _may_be_off(self._known(), widths)

    @property
    def _which(self) -> tuple[str, Fingerprint]:
        return self.bench.skeleton_sha256, self.bench.fingerprint

    def _known(self) -> dict[WidthVector, LatencyRecord]:
        return {record.widths: record for record in self.database.records(*self._which)}


def _may_be_off(known: Mapping[WidthVector, LatencyRecord], widths: WidthVector) -> float:
    return float(may_be_off([*known.values()])[[*known].index(widths)])
