from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.active import Array
from calibration.cost import NetworkCost
from calibration.feasibility import Feasibility, Parts, parts_of
from calibration.sampling import first_widths
from calibration.skeleton import Skeleton

from .chain import chain
from .laws import ANCHOR_MS, records_of
from .residual import STREAM, residual


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return chain((32, 64, 64))


def found(skeleton: Skeleton, fixed: float) -> Feasibility:
    """Of a network whose latency is `fixed` plus its share of multiply-adds, without noise."""
    cost, groups = NetworkCost.of(skeleton), skeleton.groups
    dense = cost.layer_macs(cost.channels[None]).sum()

    def law(kept: Array) -> Array:
        return np.asarray(fixed + (1 - fixed) * cost.layer_macs(kept).sum(1) / dense)

    records = records_of(groups, first_widths(groups, 8, 60, seed=0), law)
    return Feasibility.of(
        skeleton, records, lambda kept: ANCHOR_MS * law(kept), groups.floor(8), ANCHOR_MS
    )


@pytest.mark.parametrize("fixed", [0.0, 0.3, 0.7])
def test_the_parts_of_a_known_law_are_found(skeleton: Skeleton, fixed: float) -> None:
    parts = found(skeleton, fixed).parts
    assert parts.fixed == pytest.approx(fixed, abs=0.01)
    assert parts.compute == pytest.approx(1 - fixed, abs=0.01)
    assert parts.traffic == pytest.approx(0, abs=0.01)


def test_floor_speedup_and_shares(skeleton: Skeleton) -> None:
    ours = found(skeleton, 0.2)
    cost = NetworkCost.of(skeleton)
    floor = skeleton.groups.floor(8).as_array().astype(float)
    macs = cost.layer_macs(np.stack([cost.channels, floor])).sum(1)
    assert ours.floor_ratio == pytest.approx(0.2 + 0.8 * macs[1] / macs[0])
    assert ours.floor_ms == pytest.approx(ANCHOR_MS * ours.floor_ratio)
    assert ours.speedup == pytest.approx(1 / ours.floor_ratio)
    for index, share in enumerate(ours.groups):
        alone = cost.channels.copy()
        alone[index] = floor[index]
        saved = 0.8 * (1 - cost.layer_macs(alone[None]).sum() / macs[0])
        assert share.removable == pytest.approx(saved)


def test_what_it_means_in_words(skeleton: Skeleton) -> None:
    able, bound = found(skeleton, 0.1), found(skeleton, 0.6)
    assert "conv1" in able.verdict()
    assert able.verdict(aim=0.6) == able.verdict()
    assert "the budget of 0.10x is out of reach" in able.verdict(aim=0.1)
    assert bound.verdict().startswith("pruning will help little here: 60%")
    hopeless = replace(bound, floor_ratio=0.9, parts=Parts(0.1, 0.0, 0.9))
    assert hopeless.verdict().startswith("pruning will not help here: at most 1.11 times faster")


def test_a_disturbed_measurement_of_the_narrowest_network_is_not_the_floor(
    skeleton: Skeleton,
) -> None:
    groups = skeleton.groups
    floor = groups.floor(8)

    def law(kept: Array) -> Array:
        narrowest = (kept == floor.as_array()).all(1)
        return np.asarray(np.where(narrowest, 0.9, kept.sum(1) / groups.full().as_array().sum()))

    records = records_of(groups, first_widths(groups, 8, 60, seed=0), law)
    ours = Feasibility.of(skeleton, records, lambda kept: law(kept), floor, ANCHOR_MS)
    assert ours.floor_ratio == min(record.ratio for record in records) < 0.9


def test_layers_of_a_removed_branch_write_nothing() -> None:
    """Latency is what is written: each branch's full-width last layer, until the branch goes."""
    skeleton = residual((16, 32))
    groups, cost = skeleton.groups, NetworkCost.of(skeleton)

    def law(kept: Array) -> Array:
        on = kept[:, 1:] > 0  # stream, then the branches' inner widths
        return np.asarray(kept[:, 0] + (on * (kept[:, 1:] + kept[:, :1])).sum(1))

    drawn = first_widths(groups, 8, 60, seed=0)
    assert any(0 in widths.kept for widths in drawn)
    parts = parts_of(skeleton, records_of(groups, drawn, law))
    assert cost.channels.tolist() == [STREAM, 16, 32]
    assert parts.traffic == pytest.approx(1, abs=0.02)
