"""How far our latency ratio is off on a noisy machine, beside what plain scripts report.

Two networks on one thread; their true ratio comes from fresh processes on the machine left alone,
half of them before and half after the trials. A trial is a fresh process that times both under a
disturbance: by `compare`, and by plain loops of as much time.

python -m benchmarks.timing                                  # about 15 minutes
python -m benchmarks.timing --trials 10 --conditions same --out try.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.busy import neighbour
from benchmarks.common import environment, write_result
from benchmarks.networks import build, small_cnn
from targets.base import TargetOptions
from targets.blocks import BlockRun, measure_blocks

CORE, OTHER_CORE = 0, 1
WIDTHS = {"candidate": 48, "anchor": 64}
IMAGE_SIZE = 48
TRUTH_PROCESSES, TRUTH_SECONDS = 10, 2.0  # before and again after the trials; for each engine
TOLERANCE = {"quiet": 0.02, "other": 0.02, "same": 0.04, "bursts": 0.02}
WITHIN_GOAL, COVERAGE_GOAL, SECONDS_GOAL = 0.95, (0.90, 0.99), 3.0
BUSY = {
    "quiet": (),
    "other": ("steady", str(OTHER_CORE)),
    "same": ("steady", str(CORE)),
    "bursts": ("bursts", str(CORE), str(OTHER_CORE)),
}
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}


@dataclass(frozen=True)
class Truth:
    """The ratio of the two networks, and its 95 % interval, from blocks of fresh processes."""

    ratio: float
    interval: tuple[float, float]
    process_ratios: tuple[float, ...]
    medians_ms: dict[str, float]
    doubts: tuple[str, ...]

    @classmethod
    def of(cls, run: BlockRun) -> Truth:
        ratio, interval = run.ratio("candidate", "anchor")
        pairs = run.block_medians_ms("candidate") / run.block_medians_ms("anchor")
        medians = {name: run.median_ms(name) for name in run.blocks}
        return cls(ratio, interval, tuple(pairs.tolist()), medians, run.doubts())


def main() -> None:
    options = _options()
    if not {CORE, OTHER_CORE} <= os.sched_getaffinity(0):
        raise SystemExit(f"the benchmark needs the cores {CORE} and {OTHER_CORE}")
    os.environ.update(ONE_THREAD)
    trials: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        engines = {
            name: build("ort-cpu", small_cnn(width, size=IMAGE_SIZE), Path(folder) / name)
            for name, width in WIDTHS.items()
        }
        run = _blocks(engines, options.truth_processes)
        for condition in options.conditions:
            trials[condition] = _trials(condition, engines, options)
            _write(options, run, trials)
            _print_summary(condition, _summary(condition, trials[condition], Truth.of(run).ratio))
        run = run.joined(_blocks(engines, options.truth_processes))
    _write(options, run, trials)
    print("with the truth from before and after:")
    for condition, found in trials.items():
        _print_summary(condition, _summary(condition, found, Truth.of(run).ratio))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100, help="under each condition")
    parser.add_argument("--conditions", nargs="+", choices=list(BUSY), default=list(BUSY))
    parser.add_argument("--precision", type=float, default=0.01, help="wished; 0: use all the time")
    parser.add_argument("--truth-processes", type=int, default=TRUTH_PROCESSES)
    parser.add_argument("--out", default="timing.json", help="name of the result file")
    return parser.parse_args()


def _blocks(engines: dict[str, Path], processes: int) -> BlockRun:
    """Both engines timed in fresh processes on the measuring core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CORE})
    try:
        return measure_blocks(
            "ort-cpu",
            TargetOptions(threads=1),
            engines,
            processes=processes,
            seconds_per_block=TRUTH_SECONDS,
            stop=_tell_truth,
        )
    finally:
        os.sched_setaffinity(0, before)


def _tell_truth(run: BlockRun) -> bool:
    ratio, (low, high) = run.ratio("candidate", "anchor")
    print(f"truth: {run.processes} processes, {ratio:.4f} ({low:.4f} to {high:.4f})", flush=True)
    return False


def _trials(
    condition: str, engines: dict[str, Path], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """All trials under one condition, each in a fresh process.

    Where a process's memory comes to lie is a part of the error, and differs between processes.
    """
    command = [
        *(sys.executable, "-m", "benchmarks.timing_trial", str(engines["candidate"])),
        *(str(engines["anchor"]), "--core", str(CORE), "--precision", str(options.precision)),
    ]
    found = []
    with neighbour(BUSY[condition]):
        for _ in range(options.trials):
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout))
            if len(found) % 10 == 0 or len(found) == options.trials:
                _progress(condition, found)
    return found


def _progress(condition: str, found: Sequence[dict[str, Any]]) -> None:
    ratios = [trial["ratios"]["wgates"] for trial in found]
    low, median, high = np.quantile(ratios, (0.05, 0.5, 0.95))
    print(f"{condition}: {len(found)} trials, {median:.4f} ({low:.4f} to {high:.4f})", flush=True)


def _write(
    options: argparse.Namespace, run: BlockRun, trials: dict[str, list[dict[str, Any]]]
) -> None:
    truth = Truth.of(run)
    summaries = {name: _summary(name, found, truth.ratio) for name, found in trials.items()}
    document = {
        "command": " ".join(("python -m benchmarks.timing", *sys.argv[1:])),
        "environment": environment(),
        "networks": {"widths": WIDTHS, "image_size": IMAGE_SIZE},
        "precision": options.precision,
        "truth": vars(truth),
        "summary": summaries,
        "trials": trials,
    }
    write_result(options.out, document)


def _summary(condition: str, found: Sequence[dict[str, Any]], truth: float) -> dict[str, Any]:
    tolerance = TOLERANCE[condition]
    methods = {
        method: _errors([trial["ratios"][method] / truth - 1 for trial in found], tolerance)
        for method in found[0]["ratios"]
    }
    coverage = float(np.mean([trial["low"] <= truth <= trial["high"] for trial in found]))
    seconds = [trial["seconds"] for trial in found]
    half_widths = [(trial["high"] - trial["low"]) / 2 / truth for trial in found]
    return {
        "tolerance": tolerance,
        "trials": len(found),
        "methods": methods,
        "coverage": coverage,
        "half_width_median": float(np.median(half_widths)),
        "seconds_median": float(np.median(seconds)),
        "seconds_max": max(seconds),
        "disturbed_mean": float(np.mean([trial["disturbed"] for trial in found])),
        "doubted": sum(bool(trial["doubts"]) for trial in found),
        "goals": {
            "within": methods["wgates"]["within"] >= WITHIN_GOAL,
            "coverage": COVERAGE_GOAL[0] <= coverage <= COVERAGE_GOAL[1],
            "seconds": max(seconds) <= SECONDS_GOAL,
        },
    }


def _errors(relative: Sequence[float], tolerance: float) -> dict[str, float]:
    """Figures of the relative errors of one method."""
    size = np.abs(relative)
    return {
        "within": float(np.mean(size <= tolerance)),
        "bias": float(np.median(relative)),
        "error_median": float(np.median(size)),
        "error_p95": float(np.quantile(size, 0.95)),
        "error_max": float(size.max()),
    }


def _print_summary(name: str, summary: dict[str, Any]) -> None:
    print(
        f"{name}: covered {summary['coverage']:.0%} (half width {summary['half_width_median']:.2%})"
        f", {summary['seconds_median']:.2f} s, at most {summary['seconds_max']:.2f} s a trial; "
        f"goals {summary['goals']}"
    )
    for method, errors in summary["methods"].items():
        print(
            f"  {method:13s} within {summary['tolerance']:.0%}: {errors['within']:4.0%}"
            f"   |error| median {errors['error_median']:.2%}, 95 % {errors['error_p95']:.2%}"
            f", most {errors['error_max']:.1%}   bias {errors['bias']:+.2%}"
        )


if __name__ == "__main__":
    main()
