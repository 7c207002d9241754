"""calibrate: what it says of its measurements."""

from __future__ import annotations

from calibration.database import LatencyRecord
from calibration.widths import WidthVector
from pipeline.stages.calibrate import _doubts


def record(kept: int, *doubts: str) -> LatencyRecord:
    return LatencyRecord(WidthVector(("a",), (kept,)), 0.5, (0.49, 0.51), 1.0, 0.5, doubts)


def test_a_measurement_counts_once_however_many_doubts_it_has() -> None:
    records = [
        record(8, "candidate: 9 % of the calls were preempted", "candidate: 5 ticks were stolen"),
        record(16, "candidate: 3 ticks were stolen", "the ratio is known to 2 % only"),
        record(24),
    ]
    assert _doubts(records) == [
        "2 of 3 measurements have doubts about the candidate",
        "1 of 3 measurements have doubts about the machine",
    ]
