from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.branches import Branch
from calibration.skeleton import Skeleton
from calibration.widths import ChannelGroups, WidthVector
from pipeline.pruning.select import Selector
from pipeline.pruning.worth import COUNTED, Losses, by_count, measure_losses

from ...calibration.chain import chain

WIDTHS = (8, 16)
CLASSES = 5
GUESSING = math.log(CLASSES)
SCORES = {f"conv{index}": np.ones(width) for index, width in enumerate(WIDTHS)}
COUNT = COUNTED * GUESSING / sum(WIDTHS)  # of a channel


@pytest.fixture(scope="module")
def groups() -> ChannelGroups:
    return chain(WIDTHS).groups


@pytest.fixture(scope="module")
def branched(groups: ChannelGroups) -> ChannelGroups:
    """The same channels, as those of one branch that may go."""
    branch = Branch("last", ("conv0", "conv1"), ("last",), "sum", "skip")
    return ChannelGroups(groups.every, (branch,))


def losses(
    first: dict[int, float], second: dict[int, float], *, gone: float | None = None
) -> Losses:
    branches = {} if gone is None else {"last": gone}
    return Losses(0.1, GUESSING, {"conv0": first, "conv1": second}, branches)


def by_loss(found: Losses, groups: ChannelGroups) -> dict[str, NDArray[np.float64]]:
    """The curves without what a channel is worth by its number."""
    counted = by_count(SCORES)
    return {
        name: curve - COUNT * counted[name] for name, curve in found.worth(groups, SCORES).items()
    }


def test_by_number_a_channel_is_worth_one_in_every_group() -> None:
    large, small = np.array([900.0, 1000.0, 800.0]), np.array([0.1, 0.3, 0.2])
    found = by_count({"large": large, "small": small})
    assert found["large"] == pytest.approx(found["small"])
    assert found["large"][[0, -1]] == pytest.approx([0.0, 3.0])
    assert np.all(np.diff(found["large"], 2) < 0), "the best-scored come first"


def test_a_group_is_worth_the_loss_without_it(groups: ChannelGroups) -> None:
    found = by_loss(losses({2: 0.5, 4: 0.2}, {4: 0.15}), groups)
    assert found["conv0"][[0, 2, 3, 4, 8]] == pytest.approx([0.0, 0.0, 0.15, 0.3, 0.4])
    assert found["conv1"][[4, 10, 16]] == pytest.approx([0.0, 0.025, 0.05])


def test_more_channels_are_never_worth_less(groups: ChannelGroups) -> None:
    noisy = losses({2: 0.5, 4: 0.05, 6: 0.2}, {4: 0.05})
    found = noisy.worth(groups, SCORES)
    assert all(np.all(np.diff(curve) > 0) for curve in found.values())
    assert by_loss(noisy, groups)["conv0"][4:] == pytest.approx(0.4), "0.05 is better than dense"


def test_there_is_no_more_to_lose_than_to_guess(groups: ChannelGroups) -> None:
    found = by_loss(losses({2: 5.0}, {4: 0.1}), groups)
    assert found["conv0"][-1] == pytest.approx(GUESSING - 0.1)


@pytest.mark.parametrize("lost", [math.inf, math.nan])
def test_a_loss_that_is_no_number_is_that_of_guessing(groups: ChannelGroups, lost: float) -> None:
    allowed = {"conv0": (4, 8), "conv1": (16,)}
    found = measure_losses(
        groups, allowed, lambda widths: lost if widths.kept[0] == 4 else 0.1, classes=CLASSES
    )
    assert found.groups["conv0"] == {4: pytest.approx(GUESSING)}


def test_before_any_training_channels_count_by_number(groups: ChannelGroups) -> None:
    untrained = replace(losses({2: 2.0}, {4: 2.5}), dense=GUESSING + 0.1)
    for name, curve in untrained.worth(groups, SCORES).items():
        assert curve == pytest.approx(COUNT * by_count(SCORES)[name])


def test_a_branch_is_worth_its_groups_together(branched: ChannelGroups) -> None:
    found = by_loss(losses({2: 0.3}, {4: 0.4}, gone=0.9), branched)
    assert found["conv0"][-1] + found["conv1"][-1] == pytest.approx(0.8)
    # each what it loses down to its least width, and half of the remaining 0.3
    assert found["conv0"][[0, 2, 8]] == pytest.approx([0.0, 0.15, 0.35])
    assert found["conv1"][[0, 4, 16]] == pytest.approx([0.0, 0.15, 0.45])


def test_a_branch_that_is_worse_narrow_than_gone_is_worth_no_more_than_it_is(
    branched: ChannelGroups,
) -> None:
    found = by_loss(losses({2: 0.3}, {4: 0.7}, gone=0.5), branched)
    assert found["conv0"][-1] + found["conv1"][-1] == pytest.approx(0.4)
    assert found["conv0"][[0, 2]] == pytest.approx([0.0, 0.0]), "narrow it is worth nothing"


def test_losses_come_back_from_json(branched: ChannelGroups) -> None:
    found = losses({2: 0.5, 4: 0.2}, {4: 0.15}, gone=0.9)
    assert Losses.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_each_group_is_narrowed_alone_and_each_branch_goes_alone(branched: ChannelGroups) -> None:
    asked, told = [], []

    def loss(widths: WidthVector) -> float:
        asked.append(widths.kept)
        return 0.1 + 0.01 * (24 - sum(widths.kept))

    found = measure_losses(
        branched,
        {"conv0": (4, 8), "conv1": (4, 8, 12, 16)},
        loss,
        classes=CLASSES,
        on_done=lambda done, total: told.append((done, total)),
    )
    assert asked == [(8, 16), (4, 16), (8, 4), (8, 8), (8, 12), (0, 0)]
    assert told == [(done, 6) for done in range(1, 7)]
    assert found.dense == pytest.approx(0.1)
    assert found.guessing == pytest.approx(GUESSING)
    assert found.groups["conv1"] == pytest.approx({4: 0.22, 8: 0.18, 12: 0.14})
    assert found.branches == pytest.approx({"last": 0.34})


def test_a_group_that_has_one_width_is_not_asked_for(groups: ChannelGroups) -> None:
    allowed = {"conv0": (8,), "conv1": (4, 16)}
    found = measure_losses(groups, allowed, lambda widths: 0.2, classes=CLASSES)
    assert found.groups["conv0"] == {}
    assert by_loss(found, groups)["conv0"] == pytest.approx(0.0)


@pytest.mark.parametrize("needed", ["conv0", "conv1"])
def test_the_group_that_is_missed_most_stays_wide(needed: str) -> None:
    twins: Skeleton = chain((32, 32))
    at = {name: {8: 1.5 if name == needed else 0.2} for name in twins.groups.names}
    scores = {name: np.ones(32) for name in twins.groups.names}
    worth = Losses(0.1, GUESSING, at, {}).worth(twins.groups, scores)
    selector = Selector(twins, lambda kept: kept.sum(1), 8, measured=worth)
    plan = selector.choose(scores, (32, 32), 40.0)
    assert {name: len(rows) for name, rows in plan.kept.items()} == {
        name: 32 if name == needed else 8 for name in twins.groups.names
    }
