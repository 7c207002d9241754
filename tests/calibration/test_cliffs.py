from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from calibration.active import Array
from calibration.cliffs import LADDER, probes, snapping, step_maps
from calibration.sampling import first_widths
from calibration.skeleton import Skeleton

from .chain import chain
from .laws import Law, records_of


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return chain((64, 96, 128))


def stepped(step: int) -> Law:
    """A law in which the second and third group step, the first falls with every channel."""

    def law(kept: Array) -> Array:
        rounded = np.ceil(kept[:, 1:] / step) * step
        return np.asarray(100 + kept[:, 0] + rounded.sum(1))

    return law


def test_probes_narrow_one_group_each_and_sweep_it_whole(skeleton: Skeleton) -> None:
    found = probes(skeleton, 20)
    full = skeleton.groups.full().kept
    assert len(found) == 2 * len(LADDER)
    moved = [
        [i for i, (kept, most) in enumerate(zip(w.kept, full, strict=True)) if kept != most]
        for w in found
    ]
    assert all(len(groups) == 1 for groups in moved)
    costly = moved[0][0]
    assert costly == 1  # 96 channels between 64 and 128: one channel less saves most
    assert [w.kept[costly] for w in found[: len(LADDER)]] == [full[costly] - k for k in LADDER]
    assert probes(skeleton, len(LADDER) - 1) == ()


def test_a_narrow_group_has_no_ladder() -> None:
    assert probes(chain((16, 16)), 100) == ()


@pytest.mark.parametrize("step", [8, 16, 32])
def test_the_step_is_found_in_noise(skeleton: Skeleton, step: int) -> None:
    groups = skeleton.groups
    wanted = (groups.full(), *probes(skeleton, 100))
    found = step_maps(groups, records_of(groups, wanted, stepped(step), noise=0.003))
    assert [cliff.group for cliff in found] == list(groups.names)
    assert [cliff.step for cliff in found] == [1, step, step]
    for cliff in found[1:]:
        assert cliff.evidence >= 6
        assert cliff.drop == pytest.approx(step / 388, rel=0.25)
        assert cliff.widths[0] == cliff.channels
        assert all(a > b for a, b in pairwise(cliff.widths))
    assert snapping(found) == {"conv1": step, "conv2": step}


def test_noise_alone_is_no_cliff(skeleton: Skeleton) -> None:
    groups = skeleton.groups
    wanted = (groups.full(), *probes(skeleton, 100))
    flat = records_of(groups, wanted, lambda kept: 1 + 0 * kept[:, 0], noise=0.01)
    assert snapping(step_maps(groups, flat)) == {}
    unclear = records_of(groups, wanted, stepped(8), noise=0.2)
    assert [cliff.step for cliff in step_maps(groups, unclear)] == [None] * 3


def test_mixed_networks_say_nothing_of_one_group(skeleton: Skeleton) -> None:
    groups = skeleton.groups
    mixed = [
        w
        for w in first_widths(groups, 8, 40, seed=0)
        if sum(kept != full for kept, full in zip(w.kept, groups.full().kept, strict=True)) != 1
    ]
    assert step_maps(groups, records_of(groups, mixed, stepped(8))) == ()


def test_intervals_that_are_too_narrow_make_no_evidence(skeleton: Skeleton) -> None:
    groups = skeleton.groups
    wanted = (groups.full(), *probes(skeleton, 100))
    noisy = records_of(groups, wanted, stepped(8), noise=0.2)
    sure = [
        replace(record, ratio_ci95=(0.999 * record.ratio, 1.001 * record.ratio)) for record in noisy
    ]
    assert [cliff.step for cliff in step_maps(groups, sure)] == [None] * 3
