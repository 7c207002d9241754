"""What neighbours disturbed is measured again, and the calmest stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.repeated import PAUSES_S, repeat_disturbed
from calibration.database import LatencyDatabase
from calibration.errors import CandidateLostError
from calibration.measure import measure_all
from calibration.phases import Phases
from calibration.rows import Row
from calibration.widths import WidthVector
from targets.samples import Samples

from ..calibration.test_database import FINGERPRINT, SKELETON, comparison


@dataclass
class Neighboured:
    """A measurer whose anchor takes these times in turn; the candidates' ratio is 0.5."""

    anchors_ms: Iterator[float | None]  # None: the candidate is lost
    phases: Phases = field(default_factory=Phases)
    skeleton_sha256: str = SKELETON
    fingerprint = FINGERPRINT

    def row(self, widths: WidthVector, *, precision: float = 0.01) -> Row:
        anchor_ms = next(self.anchors_ms)
        if anchor_ms is None:
            raise CandidateLostError("took longer than the test")
        wall = np.full(6, round(1e6 * anchor_ms))
        found = replace(comparison(1), ratio=0.5, ratio_ci95=(0.499, 0.501), anchor=samples(wall))
        return Row.of(SKELETON, FINGERPRINT, widths, found)


def samples(wall_ns: np.ndarray) -> Samples:
    return replace(comparison(1).anchor, wall_ns=wall_ns)


def anchors(path: Path, *script: float | None, waited: list[float] | None = None) -> list[float]:
    """Anchor times that stay after two calm networks and a third under the script."""
    wait = [].append if waited is None else waited.append
    wanted = [WidthVector(("conv",), (width,)) for width in (8, 16, 24)]
    measurer = Neighboured(iter([4.0, 4.0, *script]))
    with LatencyDatabase(path) as database:
        measure_all(measurer, database, wanted)
        repeat_disturbed(measurer, database, wanted, wait=wait)
        records = database.records(SKELETON, FINGERPRINT)
    assert {one.widths for one in records} == set(wanted)
    return sorted(round(one.anchor_ms, 3) for one in records)


def test_what_was_disturbed_is_measured_again(tmp_path: Path) -> None:
    waited: list[float] = []
    assert anchors(tmp_path / "calm", 4.01, waited=waited) == [4.0, 4.0, 4.01]
    assert waited == []
    assert anchors(tmp_path / "once", 4.6, 4.02) == [4.0, 4.0, 4.02]
    assert anchors(tmp_path / "worse", 4.6, 4.8, 4.0, waited=waited) == [4.0, 4.0, 4.0]
    assert waited == list(PAUSES_S[:2])


def test_patience_ends_and_the_calmest_stays(tmp_path: Path) -> None:
    again = [4.7, 4.5, 4.9, 4.8][: len(PAUSES_S)]
    assert anchors(tmp_path / "never", 4.6, *again) == [4.0, 4.0, 4.5]


def test_a_candidate_that_is_lost_the_second_time_keeps_its_first(tmp_path: Path) -> None:
    assert anchors(tmp_path / "lost", 4.6, None, 4.0) == [4.0, 4.0, 4.0]
