from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from calibration.active import (
    MEMBERS,
    START,
    Array,
    Predict,
    SamplingPlan,
    StopRule,
    corners,
    ensemble,
    nearness,
    spread_out,
)
from calibration.database import LatencyRecord
from calibration.sampling import first_widths
from calibration.widths import ChannelGroups, WidthVector, legal_widths

from .chain import chain
from .laws import bilinear_fit, records_of

MULTIPLE = 8


@pytest.fixture(scope="module")
def groups() -> ChannelGroups:
    return chain((32, 64, 64, 128)).groups


def law(kept: Array) -> Array:
    return np.asarray(20 + kept[:, 0] + 0.01 * (kept[:, 1:] * kept[:, :-1]).sum(1))


def plan(groups: ChannelGroups, most: int = 200, seed: int = 0) -> SamplingPlan:
    return SamplingPlan(groups, MULTIPLE, most, seed)


def test_the_start_set_is_the_sequence_then_the_probes(groups: ChannelGroups) -> None:
    probe = WidthVector(groups.names, (28, 64, 64, 128))
    known = first_widths(groups, MULTIPLE, START, seed=0)
    found = SamplingPlan(groups, MULTIPLE, 200, 0, (probe, known[3])).start
    assert found == (*known, probe)
    assert SamplingPlan(groups, MULTIPLE, 24, 0, (probe,)).start == known[:24]


def test_rounds_begin_and_end_at_fixed_numbers(groups: ChannelGroups) -> None:
    ours = plan(groups, most=120)
    assert [ours.round_at(n) for n in (10, 60, 89, 90, 119, 120)] == [
        (10, 90),
        (60, 90),
        (60, 90),
        (90, 120),
        (90, 120),
        (90, 120),
    ]


def test_proposals_are_new_distinct_and_legal(groups: ChannelGroups) -> None:
    ours = plan(groups)
    records = records_of(groups, ours.start, law)
    found = ours.propose(records, bilinear_fit, 20)
    assert len(set(found)) == 20
    assert not set(found) & {record.widths for record in records}
    for widths in found:
        pairs = zip(widths.kept, groups.prunable, strict=True)
        assert all(kept in legal_widths(group.channels, MULTIPLE) for kept, group in pairs)


def test_a_killed_round_proposes_the_same_again(groups: ChannelGroups) -> None:
    ours = plan(groups)
    records = records_of(groups, ours.start, law)
    found = ours.propose(records, bilinear_fit, 30, aim=0.6)
    measured = records_of(groups, (*ours.start, *found[:7]), law)  # then it was killed
    begin, end = ours.round_at(len(measured))
    assert (begin, end) == (60, 90)
    assert ours.propose(measured[:begin], bilinear_fit, end - begin, aim=0.6) == found
    assert plan(groups, seed=1).propose(records, bilinear_fit, 30, aim=0.6) != found


def test_a_quarter_of_a_round_continues_the_sequence(groups: ChannelGroups) -> None:
    ours = plan(groups)
    found = ours.propose(records_of(groups, ours.start, law), bilinear_fit, 20)
    assert found[-5:] == first_widths(groups, MULTIPLE, START + 5, seed=0)[START:]


def test_the_ensemble_is_asked_where_its_members_disagree(groups: ChannelGroups) -> None:
    calls: list[int] = []

    def quarrelling(records: Sequence[LatencyRecord]) -> Predict:
        member = len(calls)
        calls.append(len(records))
        return lambda kept: np.where(kept[:, 2] <= 16, 1.0 + member, 1.0)

    ours = plan(groups)
    found = ours.propose(records_of(groups, ours.start, law), quarrelling, 16)
    assert len(calls) == MEMBERS
    assert all(45 <= count < 60 for count in calls)
    assert all(widths.kept[2] <= 16 for widths in found[:12])


def test_near_the_budget_counts_more(groups: ChannelGroups) -> None:
    ratios = np.array([1.0, 0.6, 0.3])
    assert (nearness(np.log(ratios), None) == 1).all()
    far, at, other = nearness(np.log(ratios), 0.6)
    assert at == pytest.approx(3.0)
    assert 1 <= far < 1.1
    assert 1 <= other < 1.1
    ours = plan(groups)
    records = records_of(groups, ours.start, law)
    mean = {}
    for aim in (0.3, 0.7):
        factors = iter((1.0, 1.1, 1.2, 1.3))

        def equally_unsure(
            _: Sequence[LatencyRecord], factors: Iterator[float] = factors
        ) -> Predict:
            factor = next(factors)
            return lambda kept: factor * law(kept)

        found = ours.propose(records, equally_unsure, 24, aim=aim)[:18]
        mean[aim] = np.mean([record.ratio for record in records_of(groups, found, law)])
    assert mean[0.3] < mean[0.7] - 0.2


def test_every_member_sees_both_ends_of_every_group(groups: ChannelGroups) -> None:
    records = records_of(groups, first_widths(groups, MULTIPLE, 30, seed=0), law)
    low, high = groups.floor(MULTIPLE).kept, groups.full().kept
    assert list(corners(records)) == [0, 1]

    def checking(seen: Sequence[LatencyRecord]) -> Predict:
        kept = np.array([record.widths.kept for record in seen])
        assert tuple(kept.min(0)) == low
        assert tuple(kept.max(0)) == high
        return bilinear_fit(seen)

    assert ensemble(records, checking, np.array([high], float), seed=0).shape == (MEMBERS, 1)


def test_of_two_alike_one_is_chosen() -> None:
    shares = np.array([[0.5, 0.5], [0.5, 0.51], [0.9, 0.2]])
    assert spread_out(np.array([1.0, 0.99, 0.5]), shares, 2) == [0, 2]
    assert spread_out(np.array([1.0, 0.99, 0.5]), shares, 9) == [0, 2, 1]


def test_a_tiny_space_ends() -> None:
    groups = chain((16, 24)).groups
    ours = SamplingPlan(groups, MULTIPLE, 100, 0)
    assert len(ours.start) == 6
    assert ours.propose(records_of(groups, ours.start, law), bilinear_fit, 16) == ()


@pytest.mark.parametrize(
    ("mean", "interval", "samples", "said"),
    [
        (0.019, 0.04, 80, "--lpnet-error 2.0%"),
        (0.019, 0.06, 80, None),  # the mean hides a tail
        (0.021, 0.04, 80, None),
        (0.021, 0.04, 200, "--samples 200"),
    ],
)
def test_stops_by_error_with_its_interval_or_by_samples(
    mean: float, interval: float, samples: int, said: str | None
) -> None:
    reason = StopRule(0.02, 200, None).reason(mean, interval, samples)
    assert (reason is None) == (said is None)
    assert said is None or (reason is not None and said in reason)


def test_time_is_up_after_the_minutes_given() -> None:
    assert not StopRule(0.02, 200, None).time_is_up(1e9)
    assert not StopRule(0.02, 200, 1.5).time_is_up(89)
    assert StopRule(0.02, 200, 1.5).time_is_up(90)
