from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest

from calibration.sampling import first_widths, near, width_sequence
from calibration.widths import ChannelGroups, WidthVector, legal_widths

from .chain import chain

MULTIPLE = 8
WIDTHS = (32, 64, 64, 128)


@pytest.fixture(scope="module")
def groups() -> ChannelGroups:
    return chain(WIDTHS).groups


def is_legal(widths: WidthVector, groups: ChannelGroups) -> bool:
    pairs = zip(widths.kept, groups.prunable, strict=True)
    return widths.groups == groups.names and all(
        kept in legal_widths(group.channels, MULTIPLE) for kept, group in pairs
    )


def test_samples_are_distinct_and_legal_and_start_with_the_corners(groups: ChannelGroups) -> None:
    found = first_widths(groups, MULTIPLE, 200, seed=0)
    assert len(set(found)) == 200
    assert all(is_legal(widths, groups) for widths in found)
    assert found[:2] == (groups.full(), groups.floor(MULTIPLE))


def test_a_shorter_run_is_the_beginning_of_a_longer_one(groups: ChannelGroups) -> None:
    longer = first_widths(groups, MULTIPLE, 100, seed=3)
    assert first_widths(groups, MULTIPLE, 40, seed=3) == longer[:40]
    assert tuple(islice(width_sequence(groups, MULTIPLE, seed=3), 7)) == longer[:7]
    assert first_widths(groups, MULTIPLE, 100, seed=4) != longer


@pytest.mark.parametrize("count", [25, 60, 150])
def test_every_prefix_covers_the_range_of_openness(groups: ChannelGroups, count: int) -> None:
    low, high = np.array(groups.floor(MULTIPLE).kept), np.array(groups.full().kept)
    kept = np.array([w.kept for w in first_widths(groups, MULTIPLE, count, seed=0)])
    openness = ((kept - low) / (high - low)).mean(1)
    counts, _ = np.histogram(openness, bins=5, range=(0, 1))
    assert counts.min() >= 0.06 * count
    assert (kept.min(0) == low).all()
    assert (kept.max(0) == high).all()


def test_single_groups_are_seen_alone(groups: ChannelGroups) -> None:
    found = {w.kept for w in first_widths(groups, MULTIPLE, 60, seed=0)}
    full, floor = groups.full().kept, groups.floor(MULTIPLE).kept
    assert (floor[0], *full[1:]) in found
    assert (full[0], *floor[1:]) in found


def size_of_space(widths: tuple[int, ...]) -> int:
    return math.prod(len(legal_widths(channels, MULTIPLE)) for channels in widths)


@pytest.mark.parametrize("widths", [(16, 16), (4,), (24, 16, 4)])
def test_a_tiny_space_ends_when_all_was_seen(widths: tuple[int, ...]) -> None:
    found = first_widths(chain(widths).groups, MULTIPLE, 1000, seed=0)
    assert len(found) == len(set(found)) == size_of_space(widths)


def test_neighbours_are_distinct_legal_and_at_most_two_steps_off(groups: ChannelGroups) -> None:
    centre = WidthVector(groups.names, (24, 8, 64, 48))
    found = near(centre, groups, MULTIPLE, 16, seed=1)
    assert len(set(found)) == 16
    assert centre not in found
    assert all(is_legal(widths, groups) for widths in found)
    away = np.abs(np.array([w.kept for w in found]) - np.array(centre.kept))
    assert away.max() <= 2 * MULTIPLE
    assert (away > 0).any(0).all()
    assert near(centre, groups, MULTIPLE, 16, seed=1) == found
    assert near(centre, groups, MULTIPLE, 16, seed=2) != found


def test_where_there_are_few_neighbours_few_are_given() -> None:
    groups = chain((16, 16)).groups
    assert len(near(groups.full(), groups, MULTIPLE, 100, seed=0)) == size_of_space((16, 16)) - 1
    alone = chain((4,)).groups
    assert near(alone.full(), alone, MULTIPLE, 16, seed=0) == ()
