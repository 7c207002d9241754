"""One trial of `benchmarks/timing.py` in a process of its own: one JSON line on stdout.

python -m benchmarks.timing_trial A.onnx B.onnx --core 0 --precision 0.01
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets import load_target
from targets.base import Engine, TargetOptions
from targets.timing import compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("candidate", type=Path)
    parser.add_argument("anchor", type=Path)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--precision", type=float, required=True)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    target = load_target("ort-cpu", TargetOptions(threads=1))
    with target.load(options.anchor) as anchor, target.load(options.candidate) as candidate:
        print(json.dumps(_trial(candidate, anchor, options.precision)))


def _trial(candidate: Engine, anchor: Engine, precision: float) -> dict[str, Any]:
    """Our estimate, then the plain ones in as much time."""
    began = time.perf_counter()
    found = compare(candidate, anchor, precision=precision)
    seconds = time.perf_counter() - began
    ours_ms, anchor_ms = (_plain_ms(engine, seconds / 2) for engine in (candidate, anchor))
    return {
        "seconds": seconds,
        "rounds": len(found.round_ratios),
        "low": found.ratio_ci95[0],
        "high": found.ratio_ci95[1],
        "disturbed": 1.0 - float(np.mean(found.candidate.clean)),
        "doubts": found.doubts(),
        "ratios": {
            "wgates": found.ratio,
            "plain median": float(np.median(ours_ms) / np.median(anchor_ms)),
            "plain mean": float(np.mean(ours_ms) / np.mean(anchor_ms)),
            "plain min": float(np.min(ours_ms) / np.min(anchor_ms)),
        },
    }


def _plain_ms(engine: Engine, seconds: float) -> NDArray[np.float64]:
    """One call after the other for so long, as scripts do it; in ms, (calls,)."""
    took_ms: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not took_ms:
        start = time.perf_counter_ns()
        engine.call()
        took_ms.append((time.perf_counter_ns() - start) / 1e6)
    return np.array(took_ms)


if __name__ == "__main__":
    main()
