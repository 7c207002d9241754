from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.cost import NetworkCost
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector, legal_widths
from pipeline.pruning.select import Selector
from pipeline.pruning.uniform import uniform_widths

from ...calibration.chain import chain

MULTIPLE = 4
BLOCK = 16
WIDTHS = (32, 48, 64, 64)


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return chain(WIDTHS)


def smooth(skeleton: Skeleton) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """1 ms + 10 ms at full width, by MACs."""
    cost = NetworkCost.of(skeleton)
    dense = cost.macs(skeleton.groups.full())
    return lambda kept: 1 + 10 * cost.layer_macs(kept).sum(1) / dense


def stepped(skeleton: Skeleton) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The same with widths rounded up to the block."""
    by_macs = smooth(skeleton)
    return lambda kept: by_macs(np.ceil(kept / BLOCK) * BLOCK)


def scores_of(skeleton: Skeleton, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return {group.name: rng.normal(0, 1, group.channels) for group in skeleton.groups.prunable}


def predicted(selector: Selector, kept: tuple[int, ...]) -> float:
    return float(selector.price(np.array([kept], float))[0])


def steps_up(kept: tuple[int, ...]) -> list[tuple[int, ...]]:
    found = []
    for index, full in enumerate(WIDTHS):
        wider = [width for width in legal_widths(full, MULTIPLE) if width > kept[index]]
        if wider:
            found.append((*kept[:index], wider[0], *kept[index + 1 :]))
    return found


@pytest.mark.parametrize("law", [smooth, stepped])
@pytest.mark.parametrize("start", [WIDTHS, (8, 8, 8, 8), (9, 30, 22, 64)])
@pytest.mark.parametrize("aim", [2.5, 5.0, 8.0])
def test_the_aim_is_met_and_filled(
    skeleton: Skeleton, law: Callable[..., object], start: tuple[int, ...], aim: float
) -> None:
    selector = Selector(skeleton, law(skeleton), MULTIPLE)
    kept = selector.choose(scores_of(skeleton), start, aim).widths().kept
    assert predicted(selector, kept) <= aim
    assert all(width in legal_widths(c, MULTIPLE) for width, c in zip(kept, WIDTHS, strict=True))
    assert all(predicted(selector, wider) > aim for wider in steps_up(kept))


def test_with_room_for_everything_nothing_is_pruned(skeleton: Skeleton) -> None:
    selector = Selector(skeleton, smooth(skeleton), MULTIPLE)
    assert selector.choose(scores_of(skeleton), (8, 8, 8, 8), 11.0).widths().kept == WIDTHS


def test_widths_between_measured_steps_are_not_chosen(skeleton: Skeleton) -> None:
    names, start = skeleton.groups.names, (8, 24, 40, 40)
    price = smooth(skeleton)  # an LPNet that does not know of the steps
    aim = float(price(np.array([start], float))[0])
    plain = Selector(skeleton, price, MULTIPLE).choose(scores_of(skeleton), start, aim)
    steps = {names[1]: 16, names[3]: 32}
    stepped = Selector(skeleton, price, MULTIPLE, steps).choose(scores_of(skeleton), start, aim)
    before, after = plain.widths().kept, stepped.widths().kept
    assert before[1] % 16
    assert before[3] % 32
    floor = skeleton.groups.floor(MULTIPLE).kept
    assert after[1] % 16 == 0 or after[1] == floor[1]
    assert after[3] % 32 == 0 or after[3] == floor[3]
    assert float(price(np.array([after], float))[0]) <= aim


def test_the_floor_may_lie_below_the_first_step(skeleton: Skeleton) -> None:
    names, floor = skeleton.groups.names, skeleton.groups.floor(MULTIPLE).kept
    selector = Selector(skeleton, smooth(skeleton), MULTIPLE, dict.fromkeys(names, 16))
    assert selector.allowed(skeleton.groups.prunable[1]) == (floor[1], 16, 32, 48)
    kept = selector.choose(scores_of(skeleton), WIDTHS, predicted(selector, floor)).widths().kept
    assert kept == floor


def test_steps_that_cost_nothing_are_taken(skeleton: Skeleton) -> None:
    # a block costs and is worth the same in every group, so that no exchange gains
    selector = Selector(skeleton, lambda kept: np.ceil(kept / BLOCK).sum(1), MULTIPLE)
    scores = {group.name: np.ones(group.channels) for group in skeleton.groups.prunable}
    start = (20, 20, 20, 20)  # every group is inside its second block
    aim = predicted(selector, start)
    assert selector.choose(scores, start, aim).widths().kept == (32, 32, 32, 32)


def test_what_is_left_goes_where_it_buys_most_score() -> None:
    twins = chain((32, 32))
    selector = Selector(twins, lambda kept: 10 * kept[:, 0] + kept[:, 1], MULTIPLE)
    scores = {name: np.ones(32) for name in twins.groups.names}
    floor = twins.groups.floor(MULTIPLE).kept
    room = 10 * MULTIPLE  # for one step of the first group, or all of the second
    kept = selector.choose(scores, floor, predicted(selector, floor) + room).widths().kept
    assert kept == (floor[0], 32)


def test_a_step_is_exchanged_for_more() -> None:
    twins = chain((32, 32))
    selector = Selector(twins, lambda kept: 10 * kept[:, 0] + kept[:, 1], MULTIPLE)
    scores = {name: np.ones(32) for name in twins.groups.names}
    kept = selector.choose(scores, (32, 8), 328.0).widths().kept  # nothing more fits as it stands
    assert kept == (28, 32)


def test_a_step_that_costs_more_than_any_other_saves_is_taken_for_several() -> None:
    three = chain((32, 32, 32))
    selector = Selector(three, lambda kept: kept @ np.array([1.0, 0.6, 0.6]), 16)
    scores = dict(zip(three.groups.names, np.ones((3, 32)), strict=True))
    regard = {"conv0": 4.0}
    kept = selector.choose(scores, (16, 32, 32), 55.0, regard).widths().kept
    assert kept == (32, 16, 16)


def blocks(kept: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the first group, whole blocks; of the second, every channel."""
    return np.ceil(kept[:, 0] / BLOCK) * BLOCK + kept[:, 1]


def test_a_block_that_is_worth_little_goes_although_its_first_channels_save_nothing() -> None:
    twins = chain((32, 32))
    idle = np.concatenate([np.ones(16), np.full(16, 0.01)])
    scores = {"conv0": idle, "conv1": np.linspace(1, 1.01, 32)}
    selector = Selector(twins, blocks, MULTIPLE)
    assert selector.choose(scores, (32, 32), 48.0).widths().kept == (16, 32)


def test_a_block_is_exchanged_although_its_first_channels_save_nothing() -> None:
    twins = chain((32, 32))
    scores = {"conv0": np.concatenate([np.ones(16), np.full(16, 0.01)]), "conv1": np.ones(32)}
    selector = Selector(twins, blocks, MULTIPLE)
    kept = selector.choose(scores, (32, 16), 48.0).widths().kept  # it fits, and nothing more does
    assert kept == (16, 32)


@pytest.mark.parametrize(("regard", "kept"), [(1.0, (16, 32)), (0.9, (32, 16))])
def test_of_plans_worth_as_much_the_one_that_uses_the_budget_is_taken(
    regard: float, kept: tuple[int, int]
) -> None:
    twins = chain((32, 32))
    scores = {name: np.ones(32) for name in twins.groups.names}
    cost = np.array([1.0, 1.5])  # a block of the first costs 16, one of the second 24
    selector = Selector(twins, lambda kept: np.ceil(kept / BLOCK) @ cost * BLOCK, MULTIPLE)
    found = selector.choose(scores, (32, 32), 66.0, {"conv1": regard})
    assert found.widths().kept == kept


def test_where_a_plan_is_known_one_of_as_much_worth_is_taken(skeleton: Skeleton) -> None:
    selector = Selector(skeleton, smooth(skeleton), MULTIPLE, ties=0.03)
    scores = {group.name: np.ones(group.channels) for group in skeleton.groups.prunable}
    known: list[WidthVector] = []
    for _ in range(3):
        again = replace(selector, known=known, least=4.7)
        found = again.choose(scores, WIDTHS, 5.0).widths()
        assert found not in known
        assert 4.7 <= predicted(selector, found.kept) <= 5.0
        known.append(found)
    counts = [sum(found.kept) for found in known]
    assert max(counts) - min(counts) <= selector.ties * sum(WIDTHS)
    nowhere = replace(selector, known=known, least=5.0)
    assert nowhere.choose(scores, WIDTHS, 5.0).widths() == known[0]


@pytest.mark.parametrize(("regard", "wide"), [({"conv0": 0.1}, 1), ({"conv1": 0.1}, 0)])
def test_channels_of_regarded_groups_are_kept(regard: dict[str, float], wide: int) -> None:
    twins = chain((32, 32))
    selector = Selector(twins, lambda kept: kept.sum(1), MULTIPLE)
    scores = {name: np.ones(32) for name in twins.groups.names}
    floor = twins.groups.floor(MULTIPLE).kept[0]
    kept = selector.choose(scores, (20, 20), 32.0 + floor, regard).widths().kept
    assert (kept[wide], kept[1 - wide]) == (32, floor)


def test_the_best_scored_channels_are_kept(skeleton: Skeleton) -> None:
    selector = Selector(skeleton, smooth(skeleton), MULTIPLE)
    scores = scores_of(skeleton)
    plan = selector.choose(scores, WIDTHS, 4.0)
    assert plan.skeleton_sha256 == skeleton.sha256
    for name, rows in plan.kept.items():
        best = np.argsort(-scores[name])[: len(rows)]
        assert rows == tuple(sorted(best.tolist()))
    assert plan.widths().kept != WIDTHS


def test_a_group_whose_channels_matter_alike_is_narrowed_before_one_with_a_few_that_matter() -> (
    None
):
    twins = chain((32, 32, 32))  # layers 1 and 2 have the same price
    selector = Selector(twins, lambda kept: kept[:, 1] + kept[:, 2], MULTIPLE)
    steep = np.concatenate([np.full(28, 5.0), np.zeros(4)])  # its last 4 channels are worth least
    scores = {"conv0": np.ones(32), "conv1": np.linspace(1, 1.01, 32), "conv2": steep}
    assert selector.choose(scores, (32, 32, 32), 60.0).widths().kept == (32, 32, 28)


def test_the_floor_is_where_it_stops(skeleton: Skeleton) -> None:
    selector = Selector(skeleton, smooth(skeleton), MULTIPLE)
    floor = skeleton.groups.floor(MULTIPLE)
    assert selector.choose(scores_of(skeleton), WIDTHS, 0.5).widths() == floor


def test_a_predictor_that_rewards_growth_is_not_believed_on_the_way_down(
    skeleton: Skeleton,
) -> None:
    def wiggle(kept: NDArray[np.float64]) -> NDArray[np.float64]:
        return kept[:, 1:].sum(1) - 0.01 * kept[:, 0]  # narrowing group 0 makes it slower

    selector = Selector(skeleton, wiggle, MULTIPLE)
    kept = selector.choose(scores_of(skeleton), WIDTHS, 100.0).widths().kept
    assert kept[0] == WIDTHS[0]
    assert predicted(selector, kept) <= 100


def test_uniform_widths_take_what_costs_nothing(skeleton: Skeleton) -> None:
    selector = Selector(skeleton, stepped(skeleton), MULTIPLE)
    kept = uniform_widths(selector, 5.0).kept
    assert predicted(selector, kept) <= 5.0
    assert all(width % BLOCK == 0 for width in kept)


def test_uniform_widths_are_the_widest_common_share(skeleton: Skeleton) -> None:
    selector = Selector(skeleton, smooth(skeleton), MULTIPLE)
    assert uniform_widths(selector, 11.0).kept == WIDTHS
    assert uniform_widths(selector, 0.5) == skeleton.groups.floor(MULTIPLE)
    kept = uniform_widths(selector, 5.0).kept
    assert predicted(selector, kept) <= 5.0
    assert predicted(selector, tuple(width + MULTIPLE for width in kept)) > 5.0
    shares = np.array(kept) / np.array(WIDTHS)
    assert np.ptp(shares) <= 2 * MULTIPLE / min(WIDTHS)
