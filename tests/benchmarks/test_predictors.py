from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from calibration.cost import NetworkCost
from calibration.database import LatencyRecord
from calibration.sampling import first_widths
from targets.base import TargetOptions
from targets.fake import FakeTarget

from ..calibration.chain import chain

BLOCK = 16
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def predictors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("predictors")


def problem(predictors: ModuleType, count: int):
    """Networks whose latency is a constant and their MACs: what every method can learn."""
    skeleton = chain((64, 96, 128))
    cost = NetworkCost.of(skeleton)
    full = 2e6 + cost.macs(skeleton.groups.full())
    records = []
    for widths in first_widths(skeleton.groups, 8, count, seed=0):
        ratio = (2e6 + cost.macs(widths)) / full
        records.append(LatencyRecord(widths, ratio, (ratio * 0.99, ratio * 1.01), 4.0, ()))
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
def test_methods_learn_what_is_linear_in_macs(
    predictors: ModuleType, name: str, mean: float
) -> None:
    given = problem(predictors, 80)
    predicted = predictors.held_out(predictors.METHODS[name], given)
    errors = np.abs(predicted / given.ratios() - 1)
    assert errors.mean() <= mean


def test_no_prediction_saw_its_record(predictors: ModuleType) -> None:
    given = problem(predictors, 50)
    asked: list[tuple[set[int], np.ndarray]] = []

    def method(_: object, seen: list[int]):
        def predict(kept: np.ndarray) -> np.ndarray:
            asked.append((set(seen), kept))
            return np.ones(len(kept))

        return predict

    predictors.held_out(method, given)
    every = [tuple(row) for row in given.kept()]
    for seen, kept in asked:
        assert not {every[index] for index in seen} & {tuple(row) for row in kept}
    assert sum(len(kept) for _, kept in asked) == 50


def test_coverage_is_ninety_percent_of_like_errors(predictors: ModuleType) -> None:
    rng = np.random.default_rng(0)
    measured = np.exp(rng.normal(0, 0.02, 1000))
    assert predictors.coverage(np.ones(1000), measured) == pytest.approx(0.9, abs=0.03)
    assert predictors.coverage(measured, measured) == 1
