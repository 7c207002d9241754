"""What prune proposes, timed well; and again at another time where it may be taken.

Neighbours may compute for minutes on end, so that all rounds of one plan are slowed alike and its
interval says nothing of it. They slow the dense network more than one that needs less memory, and
its ratio falls: a plan of ResNet-18 measured 0.243 then, 0.257 to 0.268 later. But the dense
network is the same beside all plans: where it took longer than beside the others, others computed.

Of several plans the one that is taken tends to be one that was timed too fast, too. What it takes
at another time owes nothing to that choice, and how far the two lie apart is part of the interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from calibration.database import LatencyDatabase, LatencyRecord
from calibration.errors import CandidateLostError
from calibration.isolated import IsolatedBench
from calibration.measure import measure_all
from calibration.pace import CALM, STEADY_OF_SEVERAL, may_be_off
from calibration.rows import Row
from calibration.several import PLAN_PRECISION, Range, SeveralProcesses
from calibration.widths import WidthVector
from targets.fingerprint import Fingerprint
from targets.loads import mean_ratio


@dataclass(frozen=True)
class Known:
    """A plan's latency, of one or two timings; by how much at most others moved its log ratio."""

    record: LatencyRecord
    off: float

    @property
    def disturbed(self) -> bool:
        """Whether others may have moved the ratio by more than matters."""
        return self.off > CALM

    def may_lie(self, between: Range | None) -> bool:
        """Whether the ratio may be one of these, as far as it is known."""
        (low, high), (least, most) = self.record.ratio_ci95, between or (0.0, math.inf)
        return high * math.exp(self.off) >= least and low * math.exp(-self.off) <= most

    def with_later(self, later: Known) -> Known:
        """Of both timings, unless others disturbed one: then the quieter."""
        if self.disturbed or later.disturbed:
            return min(self, later, key=lambda known: known.record.anchor_ms)
        both = self.record, later.record
        ratio, ratio_ci95 = mean_ratio(both)
        record = replace(
            self.record,
            ratio=ratio,
            ratio_ci95=ratio_ci95,
            anchor_ms=math.sqrt(math.prod(timing.anchor_ms for timing in both)),
            candidate_ms=math.sqrt(math.prod(timing.candidate_ms for timing in both)),
            doubts=tuple(dict.fromkeys(doubt for timing in both for doubt in timing.doubts)),
        )
        return Known(record, (self.off + later.off) / 2)


@dataclass(frozen=True)
class Proposed:
    """Times plans in several fresh processes each, and those that may be taken twice."""

    bench: IsolatedBench
    anchor: Path  # the dense network's engine
    first: LatencyDatabase
    later: LatencyDatabase  # the second timing of a plan, or the quietest of those after the first
    on_done: Callable[[int, int], None] | None = None  # given the rounds so far, and the most

    def record(
        self, widths: WidthVector, between: Range | None = None, *, insist: bool = False
    ) -> LatencyRecord:
        """Build and time the widths, or read them back; once more if that is in doubt.

        If the machine was quieter lately, since otherwise it would be as slow again; with `insist`
        whatever it was, and where nothing is in doubt, too, if it was timed only once. No ratio
        that surely lies outside of `between` need be known better. CandidateLostError if it was
        never measured.
        """
        several = SeveralProcesses(self.bench, self.anchor, self.on_done, between)
        measure_all(several, self.first, [widths], precision=PLAN_PRECISION)
        known = self.known()
        if widths not in known:
            raise CandidateLostError(self.first.lost(*self._which)[widths])
        if self._worth_another(known[widths], between, insist=insist):
            with suppress(CandidateLostError):  # what is known of it stands
                self._keep(several.row(widths, precision=PLAN_PRECISION))
        return self.known()[widths].record

    def known(self) -> dict[WidthVector, Known]:
        """All plans that were timed, in the order in which they first were."""
        first, later = (database.records(*self._which) for database in (self.first, self.later))
        both = *first, *later
        offs = may_be_off(both, STEADY_OF_SEVERAL) if both else ()
        timings = [Known(record, float(off)) for record, off in zip(both, offs, strict=True)]
        found = {known.record.widths: known for known in timings[: len(first)]}
        for known in timings[len(first) :]:
            widths = known.record.widths
            found[widths] = found[widths].with_later(known)
        return found

    def in_doubt(self, widths: WidthVector, between: Range | None = None) -> bool:
        """Whether others may have moved the ratio by more than matters, in or into the range."""
        known = self.known()[widths]
        return known.disturbed and known.may_lie(between)

    def _worth_another(self, known: Known, between: Range | None, *, insist: bool) -> bool:
        if not known.may_lie(between):
            return False
        if insist and self._later(known.record.widths) is None:
            return True
        latest = self.first.records(*self._which)[-1]
        return known.disturbed and (insist or latest.anchor_ms < known.record.anchor_ms)

    def _keep(self, row: Row) -> None:
        known = self._later(row.widths)
        if known is None or row.anchor_ms < known.anchor_ms:
            self.later.add(row)

    def _later(self, widths: WidthVector) -> LatencyRecord | None:
        records = self.later.records(*self._which)
        return next((record for record in records if record.widths == widths), None)

    @property
    def _which(self) -> tuple[str, Fingerprint]:
        return self.bench.skeleton_sha256, self.bench.fingerprint
