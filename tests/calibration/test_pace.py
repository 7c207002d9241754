"""A machine that others slow: unequal for narrow networks, and only the anchor shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from calibration.database import LatencyDatabase, LatencyRecord
from calibration.errors import CandidateLostError
from calibration.lpnet import fit_lpnet
from calibration.measure import PAUSES_S, measure_all, repeat_disturbed
from calibration.pace import calm, exposures, slowdowns
from calibration.phases import Phases
from calibration.rows import Row
from calibration.sampling import first_widths
from calibration.widths import WidthVector
from targets.samples import Samples

from .chain import chain
from .test_database import FINGERPRINT, SKELETON, comparison
from .test_lpnet import BLOCK, known_ratio, records_of
from .test_lpnet import FINGERPRINT as LPNET_FINGERPRINT

QUIET_MS, SLOW = 4.0, 1.12  # the anchor's time, and how much of it beside a neighbour


def record(ratio: float, anchor_ms: float) -> LatencyRecord:
    return LatencyRecord(WidthVector(("g",), (8,)), ratio, (ratio, ratio), anchor_ms, ())


def disturbed(records: list[LatencyRecord], share: float = 0.8) -> list[LatencyRecord]:
    """Two of three measured beside a neighbour, who slows a network the more the faster it is; or,
    if the share is negative, the less."""

    def seen(one: LatencyRecord) -> LatencyRecord:
        shift = one.ratio ** (-share * np.log(SLOW))
        low, high = one.ratio_ci95
        band = (low * shift, high * shift)
        return replace(one, ratio=one.ratio * shift, ratio_ci95=band, anchor_ms=SLOW * QUIET_MS)

    return [seen(one) if index % 3 else one for index, one in enumerate(records)]


def test_the_anchor_tells_how_much_a_ratio_may_be_off() -> None:
    slower = SLOW * QUIET_MS
    records = [record(*pair) for pair in ((0.2, QUIET_MS),) * 2 + ((0.2, slower), (1.0, slower))]
    slow = np.log(SLOW) - 0.03
    assert slowdowns(records) == pytest.approx([0, 0, slow, slow])
    assert exposures(records) == pytest.approx([0, 0, slow * np.log(5), 0])
    assert calm(records).tolist() == [True, True, False, True]  # nothing can move a ratio of 1


@pytest.mark.parametrize("share", [0.8, -0.5])
def test_the_law_of_a_quiet_machine_is_learned_from_a_disturbed_one(share: float) -> None:
    skeleton = chain((64, 96, 128, 128, 160))
    records = disturbed(records_of(skeleton, 150), share)
    blind = [replace(one, anchor_ms=QUIET_MS) for one in records]
    unseen = first_widths(skeleton.groups, 8, 60, seed=9)

    def error(given: list[LatencyRecord]) -> float:
        net = fit_lpnet(given, skeleton, LPNET_FINGERPRINT, block=BLOCK)
        scale = float(net.get_buffer("anchor_ms"))
        found = [net.predict_one_ms(w) / scale / known_ratio(skeleton, w.kept) for w in unseen]
        return float(np.abs(np.array(found) - 1).mean())

    assert error(records) < 0.01
    assert error(blind) > 3 * error(records)


def test_the_held_out_error_is_that_of_undisturbed_records() -> None:
    skeleton = chain((64, 96, 128, 128, 160))
    records = disturbed(records_of(skeleton, 120))
    net = fit_lpnet(records, skeleton, LPNET_FINGERPRINT, block=BLOCK)
    assert net.held_out is not None
    assert 40 <= net.held_out.records < 120
    assert net.held_out.mean < 0.015
    assert len(net.held_out_ratios) == 120


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


def test_measurements_of_another_database_tell_what_is_calm(tmp_path: Path) -> None:
    one, other = (WidthVector(("conv",), (width,)) for width in (8, 16))
    calm_one = LatencyRecord(other, 0.5, (0.499, 0.501), 4.0, ())
    disturbed = replace(calm_one, widths=one, anchor_ms=4.6)
    measurer = Neighboured(iter([4.6, 4.7, 4.01]))
    with LatencyDatabase(tmp_path / "plans.sqlite") as database:
        measure_all(measurer, database, [one])
        repeat_disturbed(measurer, database, [one], wait=[].append)
        assert [found.anchor_ms for found in database.records(SKELETON, FINGERPRINT)] == [4.6]
        beside = [calm_one] * 9 + [disturbed]  # which is nothing to be measured again here
        repeat_disturbed(measurer, database, [one, other], wait=[].append, beside=beside)
        assert [found.anchor_ms for found in database.records(SKELETON, FINGERPRINT)] == [4.01]


def test_patience_ends_and_the_calmest_stays(tmp_path: Path) -> None:
    again = [4.7, 4.5, 4.9, 4.8][: len(PAUSES_S)]
    assert anchors(tmp_path / "never", 4.6, *again) == [4.0, 4.0, 4.5]


def test_a_candidate_that_is_lost_the_second_time_keeps_its_first(tmp_path: Path) -> None:
    assert anchors(tmp_path / "lost", 4.6, None, 4.0) == [4.0, 4.0, 4.0]
