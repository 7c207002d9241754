from __future__ import annotations

import math

import numpy as np
import pytest

from calibration.branches import Branch
from calibration.skeleton import Skeleton
from calibration.widths import ChannelGroups, WidthVector
from pipeline.pruning.select import Selector
from pipeline.pruning.together import SPREAD, asked, candidates, variants
from pipeline.pruning.worth import Worth, by_count

from ...calibration.chain import chain

WIDTHS = (32, 32, 32)
MULTIPLE = 16
AIM = 64.0  # two thirds of the dense price


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return chain(WIDTHS)


@pytest.fixture(scope="module")
def scores(skeleton: Skeleton) -> dict[str, np.ndarray]:
    return {name: np.ones(32) for name in skeleton.groups.names}


@pytest.fixture(scope="module")
def selector(skeleton: Skeleton, scores: dict[str, np.ndarray]) -> Selector:
    worth = by_count(scores)
    first = skeleton.groups.names[0]
    worth[first] = 1.05 * worth[first]
    return Selector(skeleton, lambda kept: kept.sum(1), MULTIPLE, measured=worth)


def weighed(selector: Selector) -> list[Worth]:
    assert selector.measured is not None
    return variants(selector.measured, selector.skeleton.groups, 32)


def test_the_worth_itself_is_the_first_variant_and_the_others_are_always_the_same(
    skeleton: Skeleton, scores: dict[str, np.ndarray]
) -> None:
    worth = by_count(scores)
    found, again = (variants(worth, skeleton.groups, 200) for _ in range(2))
    assert found[0] is worth
    for one, other in zip(found, again, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in worth)
    factors = np.log([[item[name][-1] / worth[name][-1] for name in worth] for item in found[1:]])
    assert factors.std() == pytest.approx(SPREAD, rel=0.1)
    assert abs(np.corrcoef(factors.T)[0, 1]) < 0.25


def test_groups_of_a_branch_are_weighed_alike(
    skeleton: Skeleton, scores: dict[str, np.ndarray]
) -> None:
    first, second, third = skeleton.groups.names
    branch = Branch("block", (first, second), ("last",), "sum", "skip")
    groups = ChannelGroups(skeleton.groups.every, (branch,))
    other = variants(by_count(scores), groups, 2)[1]
    assert other[first] == pytest.approx(other[second])
    assert other[first][-1] != pytest.approx(other[third][-1])


def test_candidates_fit_and_the_first_is_the_plan_without_a_variant(
    selector: Selector, scores: dict[str, np.ndarray]
) -> None:
    worths = weighed(selector)
    found = candidates(selector, scores, AIM, worths)
    own = selector.choose(scores, WIDTHS, AIM).widths()
    assert next(iter(found.items())) == (own, 0)
    assert len(found) > 1
    assert all(sum(widths.kept) <= AIM for widths in found)
    for widths, number in found.items():
        again = Selector(selector.skeleton, selector.price, MULTIPLE, measured=worths[number])
        assert again.choose(scores, WIDTHS, AIM).widths() == widths
    assert list(candidates(selector, scores, AIM, worths[:1])) == [own]


def test_a_loss_that_is_no_number_is_no_candidate(
    selector: Selector, scores: dict[str, np.ndarray]
) -> None:
    plans = candidates(selector, scores, AIM, weighed(selector))
    first = next(iter(plans))
    done: list[tuple[int, int]] = []

    def loss(widths: WidthVector) -> float:
        return math.nan if widths == first else float(widths.kept[0])

    found = asked(plans, loss, lambda number, total: done.append((number, total)))
    assert list(found) == list(plans)[1:]
    assert all(lost == widths.kept[0] for widths, lost in found.items())
    assert done == [(number, len(plans)) for number in range(1, len(plans) + 1)]
