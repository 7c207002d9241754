"""Latency predictors beside each other, fitted on the same measured networks: 5-fold held out.

    python benchmarks/predictors.py RUN_FOLDER... [--out NAME.json]

A run folder holds `trace/` and `calibrate/latency.sqlite`. Every network is predicted once by a
predictor that did not see it; the folds are the same for all. The interval of a fold comes from
the held-out errors of the other folds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import environment, write_result
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import RidgeCV

from calibration.cost import NetworkCost
from calibration.database import LatencyDatabase, LatencyRecord
from calibration.heldout import FOLDS, HeldOutError, conformal, outer_folds
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
WELL_MEASURED = 0.02  # half of a measurement's 95 % interval, as a share of the ratio


@dataclass(frozen=True)
class Problem:
    """The measured networks of one run, all under one fingerprint."""

    skeleton: Skeleton
    records: tuple[LatencyRecord, ...]
    fingerprint: Fingerprint
    block: int

    @classmethod
    def open(cls, folder: Path) -> Problem:
        """Of a run folder; of several fingerprints, the one with the most records."""
        skeleton = Skeleton.open(folder / "trace")
        with LatencyDatabase(folder / "calibrate" / "latency.sqlite") as database:
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

    def well_measured(self) -> NDArray[np.bool_]:
        """(N,) whether a record's own interval is narrow enough to judge a predictor by it."""
        halves = [(r.ratio_ci95[1] - r.ratio_ci95[0]) / 2 / r.ratio for r in self.records]
        return np.array(halves) <= WELL_MEASURED


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


def held_out(method: Method, problem: Problem, *, seed: int = 0) -> Array:
    """(N,) ratios, each predicted by a fit that did not see the record."""
    folds, kept = outer_folds(len(problem.records), seed), problem.kept()
    predicted = np.empty(len(folds))
    for fold in range(FOLDS):
        predict = method(problem, np.flatnonzero(folds != fold).tolist())
        predicted[folds == fold] = predict(kept[folds == fold])
    return predicted


def coverage(predicted: Array, measured: Array, *, seed: int = 0) -> float:
    """Share of records inside the 90 % interval that the other folds' errors give."""
    folds, sizes = outer_folds(len(measured), seed), np.abs(np.log(measured / predicted))
    inside = np.zeros(len(measured), bool)
    for fold in range(FOLDS):
        inside[folds == fold] = sizes[folds == fold] <= conformal(sizes[folds != fold], 0.90)
    return float(inside.mean())


def compare_methods(problem: Problem, *, seed: int = 0) -> dict[str, Any]:
    """Every method's held-out error, on all records and on those measured well."""
    well, measured = problem.well_measured(), problem.ratios()
    rows = {}
    for name, method in METHODS.items():
        start = time.perf_counter()
        predicted = held_out(method, problem, seed=seed)
        rows[name] = {
            "all": asdict(HeldOutError.of(predicted, measured)),
            "well_measured": asdict(HeldOutError.of(predicted[well], measured[well])),
            "coverage_90": coverage(predicted, measured, seed=seed),
            "seconds_a_fit": (time.perf_counter() - start) / FOLDS,
        }
        say(name, rows[name])
    return rows


def say(name: str, row: dict[str, Any]) -> None:
    every, well = row["all"], row["well_measured"]
    print(
        f"{name:24s} mean {every['mean']:6.1%}  within 5 % {every['within_5']:6.1%}  "
        f"10 % {every['within_10']:6.1%}  rank {every['spearman']:.4f}  "
        f"covered {row['coverage_90']:.0%}  | {well['records']} measured well: "
        f"{well['mean']:.1%}, {well['within_5']:.1%}, {well['within_10']:.1%}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders with a calibration")
    parser.add_argument("--out", help="name of a result file in benchmarks/results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = {"environment": environment(), "runs": {}}
    for folder in given.runs:
        problem = Problem.open(folder)
        print(f"{folder.name}: {len(problem.records)} networks on {problem.fingerprint.target}")
        document["runs"][folder.name] = {
            "target": problem.fingerprint.to_json(),
            "groups": len(problem.skeleton.groups.prunable),
            "layers": len(problem.skeleton.layers),
            "well_measured": WELL_MEASURED,
            "methods": compare_methods(problem),
        }
    if given.out:
        write_result(given.out, document)


if __name__ == "__main__":
    main()
