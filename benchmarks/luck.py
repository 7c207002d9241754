"""How much of a measured ratio is the luck of the process that measured it.

    python -m benchmarks.luck                   # about 9 minutes

The pruned networks of benchmarks/refill.py, each measured beside its dense one twice in each of
some processes, as a candidate of a calibration is. Two measurements in one process share its luck;
what processes differ by beyond that is the luck of one, which only more processes average out.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from benchmarks.common import environment, write_result
from benchmarks.refill import CASES, Case
from calibration.isolated import IsolatedBench
from calibration.jobs import Setup
from calibration.phases import Phases
from calibration.several import FEWEST, MOST
from calibration.widths import WidthVector
from targets import load_target
from targets.base import TargetOptions

PROCESSES, TIMES = 8, 2
LIMIT_S = 120.0


def main() -> None:
    torch.manual_seed(0)
    # by turns, so that the machine's moods hit all cases alike
    benches = {case: _bench(case) for case in CASES}
    ratios: dict[Case, list[list[float]]] = {case: [] for case in CASES}
    for _ in range(PROCESSES):
        for case, (bench, widths) in benches.items():
            with bench:
                ratios[case].append([bench.row(widths).ratio for _ in range(TIMES)])
    found = {case.name: spread(of) for case, of in ratios.items()}
    print(json.dumps(found, indent=1))
    write_result(
        "luck.json",
        {
            "environment": environment("openvino-cpu"),
            "processes": PROCESSES,
            "times": TIMES,
            "plans": {"fewest": FEWEST, "most": MOST},
            "cases": found,
        },
    )


def _bench(case: Case) -> tuple[IsolatedBench, WidthVector]:
    slicer, widths = case.pruned()
    target = load_target(case.target, TargetOptions(threads=1))
    setup = Setup(slicer.skeleton, target.name, target.options, target.fingerprint())
    return IsolatedBench(setup, Phases(), limit_s=LIMIT_S), widths


def spread(ratios: list[list[float]]) -> dict[str, Any]:
    """Standard deviations of a log ratio: within a process, and between processes beyond that.

    An analysis of variance with one random factor; `ratios` is (processes, times).
    """
    logs = np.log(ratios)
    within = float(logs.var(axis=1, ddof=1).mean())
    between = float(logs.mean(axis=1).var(ddof=1)) - within / logs.shape[1]
    return {
        "ratios": ratios,
        "within": within**0.5,
        "between": max(0.0, between) ** 0.5,
    }


if __name__ == "__main__":
    main()
