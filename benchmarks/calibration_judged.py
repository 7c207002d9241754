"""What the calibrations of benchmarks/calibration.py are worth: errors, intervals, transfer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.calibration_heldout import FEWEST, HeldOut
from benchmarks.predictors import METHODS, Array, Problem
from calibration.heldout import HeldOutError
from calibration.lpnet import FEWEST_RECORDS, FitOptions, LPNet, fit_lpnet, fit_once
from pipeline.run import Run
from pipeline.stages import STAGES

GOALS = {"within_5": 0.95, "within_10": 0.99, "mean": 0.02, "spearman": 0.98}
COVERED = (0.85, 0.95)  # of the networks by a 90 % interval
BATCH = 10_000  # width vectors at once
TRANSFERRED = (8, 12, 16, 20, 24, 32, 48, 64, 96)  # measurements on the new runtime
NEAR, MOST = 0.05, 0.90  # a transferred LPNet is good when this share is this near


@dataclass(frozen=True)
class Case:
    """A calibrated run and the networks that judge it."""

    name: str
    folder: Path

    @cached_property
    def calibrated(self) -> Problem:
        return Problem.open(self.folder)

    @cached_property
    def rounds(self) -> HeldOut:
        found = HeldOut.open(self.folder)
        if found is None or found.rounds < FEWEST:
            raise SystemExit(f"{self.name}: too little was held out; run the study without --judge")
        return found.without({record.widths for record in self.calibrated.records})

    @property
    def held_out(self) -> Problem:
        """With the mean of all rounds."""
        return self.rounds.problem

    @cached_property
    def lpnet(self) -> LPNet:
        """As calibrate fits and stores it."""
        seen = self.calibrated
        return fit_lpnet(seen.records, seen.skeleton, seen.fingerprint, block=seen.block)


def judge(case: Case) -> dict[str, Any]:
    """Every method's error on the held-out networks, fitted on what was calibrated with."""
    seen, held = case.calibrated, case.held_out
    assert not {r.widths for r in seen.records} & {r.widths for r in held.records}
    methods = {}
    for name, method in METHODS.items():
        began = time.perf_counter()
        predict = method(seen, range(len(seen.records)))
        seconds = time.perf_counter() - began
        found = HeldOutError.of(predict(held.kept()), held.ratios())
        methods[name] = {**asdict(found), "fit_s": seconds}
    stated, predicted = stated_by(case)
    return {
        "fingerprint": seen.fingerprint.to_json(),
        "groups": len(seen.skeleton.groups.prunable),
        "layers": len(seen.skeleton.layers),
        **_calibration_of(case.folder),
        "held_out": {
            "networks": len(held.records),
            "ratios": [float(held.ratios().min()), float(held.ratios().max())],
            "rounds": case.rounds.rounds,
            "standard_error": case.rounds.standard_error,
            "measured": held.ratios().round(5).tolist(),
            "predicted": predicted.round(5).tolist(),
        },
        "methods": methods,
        "repeat": repeat(case),
        "interval": stated,
        "batch_ms": batch_ms(case.lpnet, held.kept()),
        "met": goals_met(methods["LPNet"], stated["coverage"]),
    }


def goals_met(found: Mapping[str, float], coverage: float) -> dict[str, bool]:
    met = {name: found[name] >= goal for name, goal in GOALS.items() if name != "mean"}
    met["mean"] = found["mean"] <= GOALS["mean"]
    met["coverage"] = COVERED[0] <= coverage <= COVERED[1]
    return met


def stated_by(case: Case) -> tuple[dict[str, float], Array]:
    """The stored LPNet's own interval with its coverage, and its ratios to the anchor (N,).

    The interval is that of one measurement, so it is judged by each.
    """
    lpnet, held = case.lpnet, case.held_out
    assert lpnet.held_out is not None
    predicted = ratios(lpnet, held.kept())
    half = lpnet.held_out.interval_90
    inside = np.abs(case.rounds.log_ratios - np.log(predicted)) <= half
    return {"half_90": half, "coverage": float(inside.mean())}, predicted


def repeat(case: Case) -> dict[str, float]:
    """How far one measurement is from another of the same network, over all pairs of rounds."""
    pairs = combinations(np.exp(case.rounds.log_ratios), 2)
    found = HeldOutError.of(*np.concatenate(list(pairs), axis=1))
    return {"mean": found.mean, "within_5": found.within_5}


def ratios(lpnet: LPNet, kept: Array) -> Array:
    """(N, G) kept channels -> (N,) predicted ratios to the dense anchor."""
    with torch.no_grad():
        found: Array = lpnet(torch.tensor(kept, dtype=torch.float32)).exp().double().numpy()
    return found


def _calibration_of(folder: Path) -> dict[str, Any]:
    """What calibrate said of itself."""
    found = Run(folder, STAGES).document("calibrate", "calibration.json")
    return {
        "samples": found["samples"],
        "anchor_ms": found["anchor_ms"],
        "floor": found["floor"]["ratio"],
        "stopped": found["stopped"],
        "minutes": found["phases"]["wall_s"] / 60,
        "share_timed": found["phases"]["share"]["time"],
        "curve": found["curve"],
    }


def batch_ms(lpnet: LPNet, kept: Array) -> float:
    """Milliseconds of 10 000 width vectors on one thread; the median of nine."""
    rows = torch.tensor(kept, dtype=torch.float32)
    rows = rows.repeat(-(-BATCH // len(rows)), 1)[:BATCH]
    low, high = lpnet.get_buffer("seen_low"), lpnet.get_buffer("seen_high")
    rows, times = rows.clamp(low, high), []
    for _ in range(9):
        began = time.perf_counter()
        lpnet.predict_ms(rows)
        times.append(1e3 * (time.perf_counter() - began))
    return float(np.median(times))


def transfer(source: Case, to: Case) -> dict[str, Any]:
    """Share of held-out networks within 5 % after the first few measurements on another runtime.

    Beside it, the same measurements without the other runtime's LPNet, and that LPNet as it is.
    """
    seen, held = to.calibrated, to.held_out
    begun = FitOptions(prior=source.lpnet.as_prior(seen.block))
    points = []
    for samples in (count for count in TRANSFERRED if count <= len(seen.records)):
        point = {"samples": samples, "with_prior": _within(seen, held, samples, begun)}
        if samples >= FEWEST_RECORDS:
            point["without"] = _within(seen, held, samples, FitOptions())
        points.append(point)
    as_it_is = _share_near(ratios(source.lpnet, held.kept()), held)
    return {
        "from": source.name,
        "to": to.name,
        "as_it_is": as_it_is,
        "points": points,
        "needed": {way: needed(points, way) for way in ("with_prior", "without")},
    }


def _within(seen: Problem, held: Problem, samples: int, options: FitOptions) -> float:
    records = seen.records[:samples]
    lpnet = fit_once(records, seen.skeleton, seen.fingerprint, block=seen.block, options=options)
    return _share_near(ratios(lpnet, held.kept()), held)


def _share_near(predicted: Array, held: Problem) -> float:
    return float((np.abs(predicted / held.ratios() - 1) <= NEAR).mean())


def needed(points: list[dict[str, Any]], way: str) -> int | None:
    """The fewest measurements from which on the share stays at MOST; None: it never does."""
    needed = None
    for point in reversed([point for point in points if way in point]):
        if point[way] < MOST:
            break
        needed = point["samples"]
    return needed
