"""How much of a measured ratio is the luck of the process that measured it.

    python -m benchmarks.luck                   # about 9 minutes

The pruned networks of benchmarks/refill.py, each measured beside its dense one twice in each of
some processes, as a candidate of a calibration is. Two measurements in one process share its luck;
what processes differ by beyond that is the luck of one, which only more processes average out. So
each is then measured briefly in other processes, as a plan of `prune` is: what a minute comes to in
either way.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import environment, write_result
from calibration.isolated import IsolatedBench
from calibration.jobs import Setup
from calibration.phases import Phases
from calibration.several import FEWEST, MOST, PLAN_PRECISION, brief
from calibration.widths import WidthVector
from targets import load_target
from targets.base import TargetOptions

if TYPE_CHECKING:
    from benchmarks.refill import Case

PROCESSES, TIMES, BRIEF = 6, 2, 2  # processes, measurements in each; brief ones for each
LIMIT_S, MINUTE_S = 120.0, 60.0


def main() -> None:
    # here, since every measuring process imports this module and must not wait for torch
    import torch

    from benchmarks.refill import CASES

    torch.manual_seed(0)
    # by turns, so that the machine's moods hit all cases alike
    benches = {case.name: _bench(case) for case in CASES}
    long: dict[str, list[Timed]] = {name: [] for name in benches}
    short: dict[str, list[Timed]] = {name: [] for name in benches}
    for _ in range(PROCESSES):
        for name, (bench, widths) in benches.items():
            long[name].append(timed(bench, widths, precision=0.01, times=TIMES))
            short[name] += [
                timed(bench, widths, precision=brief(PLAN_PRECISION), times=1) for _ in range(BRIEF)
            ]
    found = {name: case(long[name], short[name]) for name in benches}
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


@dataclass(frozen=True)
class Timed:
    """What a new process measured."""

    ratios: list[float]
    seconds: float  # from its start to the first ratio


def timed(bench: IsolatedBench, widths: WidthVector, *, precision: float, times: int) -> Timed:
    """The ratio to the dense network, `times` times in a new process."""
    began = perf_counter()
    with bench:
        ratios = [bench.row(widths, precision=precision).ratio]
        seconds = perf_counter() - began
        ratios += [bench.row(widths, precision=precision).ratio for _ in range(times - 1)]
    return Timed(ratios, seconds)


def case(long: list[Timed], short: list[Timed]) -> dict[str, Any]:
    """What the processes of one network differ by, and what a minute of them tells."""
    within, between = spread([each.ratios for each in long])
    one, briefly = math.hypot(within, between), float(np.log([x.ratios for x in short]).std(ddof=1))
    return {
        "ratios": [each.ratios for each in long],
        "within": within,
        "between": between,
        "brief_ratios": [each.ratios[0] for each in short],
        "brief": briefly,
        "seconds": median(each.seconds for each in long),
        "brief_seconds": median(each.seconds for each in short),
        "minute": after_a_minute(one, median(each.seconds for each in long)),
        "brief_minute": after_a_minute(briefly, median(each.seconds for each in short)),
    }


def after_a_minute(deviation: float, seconds: float) -> float:
    """Half the 95 % interval of the mean over as many processes as a minute has room for."""
    return 1.96 * deviation / math.sqrt(max(1.0, MINUTE_S // seconds))


def spread(ratios: list[list[float]]) -> tuple[float, float]:
    """Standard deviations of a log ratio: within a process, and between processes beyond that.

    An analysis of variance with one random factor; `ratios` is (processes, times).
    """
    logs = np.log(ratios)
    within = float(logs.var(axis=1, ddof=1).mean())
    between = float(logs.mean(axis=1).var(ddof=1)) - within / logs.shape[1]
    return within**0.5, max(0.0, between) ** 0.5


if __name__ == "__main__":
    main()
