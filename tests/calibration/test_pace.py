"""A machine that others slow: unequal for narrow networks, and only the anchor shows it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.database import LatencyRecord
from calibration.lpnet import fit_lpnet
from calibration.pace import calm, calmer_half, exposures, slowdowns
from calibration.sampling import first_widths
from calibration.widths import WidthVector

from .chain import chain
from .test_lpnet import BLOCK, known_ratio, records_of
from .test_lpnet import FINGERPRINT as LPNET_FINGERPRINT

QUIET_MS, SLOW = 4.0, 1.12  # the anchor's time, and how much of it beside a neighbour


def record(ratio: float, anchor_ms: float) -> LatencyRecord:
    ends, candidate_ms = (ratio, ratio), ratio * anchor_ms
    return LatencyRecord(WidthVector(("g",), (8,)), ratio, ends, anchor_ms, candidate_ms, ())


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


@pytest.mark.parametrize("lucky", ["candidate", "anchor"])
def test_luck_of_one_of_two_says_nothing_about_calm(lucky: str) -> None:
    generator = np.random.default_rng(0)
    noise = {name: 0.002 * generator.standard_normal(400) for name in ("candidate", "anchor")}
    noise[lucky] += 0.04 * generator.standard_normal(400)
    candidate, anchor = (np.exp(noise[name]) for name in ("candidate", "anchor"))
    chosen = calmer_half(0.5 * candidate, anchor)
    assert 200 <= chosen.sum() <= 201
    assert np.exp(np.log(0.5 * candidate / anchor)[chosen].mean()) == pytest.approx(0.5, rel=0.006)


def test_the_calmer_half_is_that_which_neighbours_spared() -> None:
    beside = np.arange(20) % 3 == 0
    candidate, anchor = np.where(beside, 0.8, 0.5), np.where(beside, 1.1, 1.0)
    assert not calmer_half(candidate, anchor)[beside].any()
