from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import predictors
from benchmarks.calibration import beside_older
from benchmarks.calibration_heldout import COUNT, STRATA, HeldOut, stratified
from benchmarks.calibration_judged import goals_met, needed
from benchmarks.calibration_plots import draw
from calibration.cost import NetworkCost
from calibration.database import LatencyRecord
from calibration.sampling import first_widths
from targets.base import TargetOptions
from targets.fake import FakeTarget

from ..calibration.chain import chain

BLOCK = 16


def problem(count: int) -> predictors.Problem:
    """Networks whose latency is a constant and their MACs: what every method can learn."""
    skeleton = chain((64, 96, 128))
    cost = NetworkCost.of(skeleton)
    full = 2e6 + cost.macs(skeleton.groups.full())
    records = []
    for widths in first_widths(skeleton.groups, 8, count, seed=0):
        ratio = (2e6 + cost.macs(widths)) / full
        ends = (ratio * 0.99, ratio * 1.01)
        records.append(LatencyRecord(widths, ratio, ends, 4.0, 4.0 * ratio, ()))
    fingerprint = FakeTarget(TargetOptions(batch=2)).fingerprint()
    return predictors.Problem(skeleton, tuple(records), fingerprint, BLOCK)


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("linear in MACs", 1e-6),
        ("non-negative layer sums", 1e-6),
        ("look-up table", 0.03),
        ("gradient boosting", 0.1),
        ("LPNet", 0.01),
    ],
)
def test_methods_learn_what_is_linear_in_macs(name: str, mean: float) -> None:
    given = problem(120)
    predict = predictors.METHODS[name](given, range(80))
    errors = np.abs(predict(given.kept()[80:]) / given.ratios()[80:] - 1)
    assert errors.mean() <= mean


def test_the_judges_cover_the_range_and_were_not_seen() -> None:
    given = problem(60)
    judges = stratified(given, 8)
    assert len(set(judges)) == COUNT
    assert not {record.widths for record in given.records} & set(judges)
    cost = NetworkCost.of(given.skeleton)
    macs = [cost.macs(widths) for widths in judges]
    counts, _ = np.histogram(macs, STRATA)
    assert counts.min() >= COUNT // STRATA // 2


def noisy_rounds(count: int, sigma: float) -> list[predictors.Problem]:
    """The same networks, each time in another order and with other noise."""
    rng, given = np.random.default_rng(0), problem(80)
    rounds = []
    for _ in range(count):
        order = rng.permutation(len(given.records))
        records = (given.records[index] for index in order)
        noisy = tuple(replace(r, ratio=r.ratio * np.exp(rng.normal(0, sigma))) for r in records)
        rounds.append(replace(given, records=noisy))
    return rounds


def test_rounds_give_a_mean_and_how_well_it_is_known() -> None:
    found, true = HeldOut.of(noisy_rounds(4, 0.02)), problem(80)
    ratio_of = {record.widths: record.ratio for record in true.records}
    truth = np.array([ratio_of[record.widths] for record in found.problem.records])
    errors = np.log(found.problem.ratios() / truth)
    assert found.spread == pytest.approx(0.02, rel=0.15)
    assert found.standard_error == pytest.approx(0.01, rel=0.15)
    assert errors.std() == pytest.approx(found.standard_error, rel=0.2)


@pytest.mark.parametrize(
    ("rounds", "sigma", "suffices"),
    [(2, 0.01, True), (2, 0.03, False), (4, 0.02, True), (4, 0.04, False), (5, 0.04, True)],
)
def test_rounds_go_on_until_the_mean_is_known_or_they_are_many(
    rounds: int, sigma: float, suffices: bool
) -> None:
    assert HeldOut.of(noisy_rounds(rounds, sigma)).suffices == suffices


def test_networks_that_were_calibrated_since_do_not_judge() -> None:
    found = HeldOut.of(noisy_rounds(2, 0.02))
    widths = [record.widths for record in found.problem.records]
    fewer = found.without({widths[0], widths[7]})
    assert [record.widths for record in fewer.problem.records] == [*widths[1:7], *widths[8:]]
    means = np.exp(fewer.log_ratios.mean(axis=0))
    np.testing.assert_allclose(means, fewer.problem.ratios())
    assert fewer.rounds == 2


def test_goals_are_met_on_the_right_side() -> None:
    good = {"within_5": 0.95, "within_10": 0.99, "mean": 0.02, "spearman": 0.98}
    assert all(goals_met(good, 0.9).values())
    worse = {"within_5": 0.94, "within_10": 0.98, "mean": 0.021, "spearman": 0.97}
    assert not any(goals_met(worse, 0.96).values())
    assert not goals_met(good, 0.84)["coverage"]


def test_needed_is_where_the_share_stays() -> None:
    shares = {8: 0.92, 12: 0.80, 16: 0.90, 24: 0.95}
    points = [{"samples": samples, "with_prior": share} for samples, share in shares.items()]
    assert needed(points, "with_prior") == 16
    assert needed([{"samples": 8, "with_prior": 0.5}], "with_prior") is None


def test_plots_are_the_same_again(tmp_path: Path) -> None:
    curve = [{"samples": n, "active": 1 / n, "random": 2 / n} for n in (30, 60)]
    held = {"measured": [0.5, 1.0], "predicted": [0.51, 0.98]}
    case = {
        "samples": 60,
        "curve": curve,
        "held_out": held,
        "methods": {"LPNet": {"mean": 0.02, "within_5": 1.0}},
    }
    document = {"cases": {"one": case, "two": case}}
    first = [path.read_bytes() for path in draw(document, tmp_path)]
    assert [path.read_bytes() for path in draw(document, tmp_path)] == first
    assert all(b"<svg" in text for text in first)


def test_cases_that_were_not_judged_again_stay_with_their_commit() -> None:
    def made(commit: str, *cases: str) -> dict[str, Any]:
        return {
            "environment": {"commit": commit, "at": "2026"},
            "cases": {name: {"made": {"commit": commit}} for name in cases},
            "transfer": [{"from": cases[0], "to": cases[-1], "of": commit}],
        }

    older = made("old", "resnet18-ort-cpu", "resnet56-ort-cpu", "resnet56-openvino-cpu")
    found = beside_older(made("new", "resnet18-ort-cpu", "resnet50-ort-cpu"), older)
    assert {name: case["made"]["commit"] for name, case in found["cases"].items()} == {
        "resnet56-ort-cpu": "old",
        "resnet56-openvino-cpu": "old",
        "resnet18-ort-cpu": "new",
        "resnet50-ort-cpu": "new",
    }
    assert [each["of"] for each in found["transfer"]] == ["old", "new"]
    assert found["environment"]["commit"] == "new"
