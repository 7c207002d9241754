"""Latency predictors that are fitted on the same measured networks: ours and the usual ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import RidgeCV

from calibration.cost import NetworkCost
from calibration.database import LatencyDatabase, LatencyRecord
from calibration.lpnet import FitOptions, fit_once
from calibration.skeleton import Skeleton
from targets import load_target
from targets.base import TargetOptions
from targets.fingerprint import Fingerprint

Array = NDArray[np.float64]
Predict = Callable[[Array], Array]  # (N, G) kept channels -> (N,) ratios to the dense anchor

KNOTS = 5  # of a look-up table, along each side of a layer
RIDGES = np.geomspace(1e-6, 1, 13)
TREES = {"random_state": 0}


@dataclass(frozen=True)
class Problem:
    """Networks that were measured under one fingerprint."""

    skeleton: Skeleton
    records: tuple[LatencyRecord, ...]
    fingerprint: Fingerprint
    block: int

    @classmethod
    def open(cls, folder: Path, measured: str = "calibrate/latency.sqlite") -> Problem:
        """Of a run folder; of several fingerprints, the one with the most records."""
        skeleton = Skeleton.open(folder / "trace")
        with LatencyDatabase(folder / measured) as database:
            known = [row.fingerprint for row in database.rows(skeleton.sha256)]
            fingerprint = max(known, key=known.count)
            records = database.records(skeleton.sha256, fingerprint)
        target = load_target(fingerprint.target, TargetOptions(threads=fingerprint.threads))
        return cls(skeleton, records, fingerprint, target.channel_block)

    @property
    def cost(self) -> NetworkCost:
        return NetworkCost.of(self.skeleton)

    def kept(self) -> Array:
        """(N, G) kept channels."""
        return np.array([record.widths.kept for record in self.records], float)

    def ratios(self) -> Array:
        """(N,) measured ratios to the dense anchor."""
        return np.array([record.ratio for record in self.records])


Method = Callable[[Problem, Sequence[int]], Predict]  # fitted on the records of these indices


def relative(features: Callable[[Array], Array], problem: Problem, seen: Sequence[int]) -> Predict:
    """Non-negative least squares on relative errors."""
    rows = features(problem.kept()[seen])
    scale = rows.max(0).clip(1e-12)
    ratios = problem.ratios()[seen]
    weights, _ = nnls(rows / scale / ratios[:, None], np.ones(len(ratios)), maxiter=10_000)
    return lambda kept: features(kept) @ (weights / scale)


def linear_in_macs(problem: Problem, seen: Sequence[int]) -> Predict:
    """A constant and the total MACs."""

    def features(kept: Array) -> Array:
        return np.stack([np.ones(len(kept)), problem.cost.layer_macs(kept).sum(1)], 1)

    return relative(features, problem, seen)


def rounded_up(sizes: Array, full: Array, block: int) -> Array:
    return np.where(full <= 4, sizes, np.ceil(sizes / block) * block)


def layer_sums(problem: Problem, seen: Sequence[int]) -> Predict:
    """The non-negative fit of issue 4: each layer's MACs, those rounded to 16, and the widths."""
    cost = problem.cost

    def features(kept: Array) -> Array:
        outputs, inputs = cost.outputs.at(kept, cost.channels), cost.inputs.at(kept, cost.channels)
        wide = rounded_up(outputs, cost.outputs.full, 16)
        deep = rounded_up(inputs, cost.inputs.full, 16)
        macs = cost.unit_macs * outputs * inputs
        return np.hstack([np.ones((len(kept), 1)), macs, cost.unit_macs * wide * deep, kept])

    return relative(features, problem, seen)


def hats(shares: Array) -> Array:
    """(N, L) in 0 to 1 -> (N, L, KNOTS) weights of linear interpolation."""
    places = np.linspace(0, 1, KNOTS)
    return np.clip(1 - np.abs(shares[:, :, None] - places) * (KNOTS - 1), 0, None)


def look_up_table(problem: Problem, seen: Sequence[int]) -> Predict:
    """A sum over layers of a table of (inputs, outputs), read by interpolation (HALP's way)."""
    cost = problem.cost

    def features(kept: Array) -> Array:
        wide = hats(cost.outputs.at(kept, cost.channels) / cost.outputs.full)
        deep = hats(cost.inputs.at(kept, cost.channels) / cost.inputs.full)
        return np.einsum("nla,nlb->nlab", wide, deep).reshape(len(kept), -1)

    ratios = problem.ratios()[seen]
    fit = RidgeCV(RIDGES, fit_intercept=True)
    fit.fit(features(problem.kept()[seen]), ratios, sample_weight=ratios**-2.0)
    return lambda kept: fit.predict(features(kept)).clip(1e-3)


def tree_inputs(problem: Problem, kept: Array) -> Array:
    macs = problem.cost.layer_macs(kept)
    return np.hstack([kept, macs, macs.sum(1, keepdims=True)])


def trees(model: Any, problem: Problem, seen: Sequence[int]) -> Predict:
    """Trees on widths, MACs of layers and their total; the log of the ratio is learned."""
    model.fit(tree_inputs(problem, problem.kept()[seen]), np.log(problem.ratios()[seen]))
    return lambda kept: np.exp(model.predict(tree_inputs(problem, kept)))


def random_forest(problem: Problem, seen: Sequence[int]) -> Predict:
    """nn-Meter's way."""
    return trees(RandomForestRegressor(200, **TREES), problem, seen)


def gradient_boosting(problem: Problem, seen: Sequence[int]) -> Predict:
    """Four hundred shallow trees."""
    model = GradientBoostingRegressor(n_estimators=400, learning_rate=0.05, max_depth=3, **TREES)
    return trees(model, problem, seen)


def lpnet(options: FitOptions, problem: Problem, seen: Sequence[int]) -> Predict:
    """Either net of ours, as the pipeline fits it."""
    records = [problem.records[index] for index in seen]
    net = fit_once(
        records, problem.skeleton, problem.fingerprint, block=problem.block, options=options
    )

    def predict(kept: Array) -> Array:
        with torch.no_grad():
            return net(torch.tensor(kept, dtype=torch.float32)).exp().double().numpy()

    return predict


METHODS: dict[str, Method] = {
    "linear in MACs": linear_in_macs,
    "non-negative layer sums": layer_sums,
    "look-up table": look_up_table,
    "random forest": random_forest,
    "gradient boosting": gradient_boosting,
    "plain net": lambda problem, seen: lpnet(FitOptions("plain"), problem, seen),
    "LPNet": lambda problem, seen: lpnet(FitOptions(), problem, seen),
}
