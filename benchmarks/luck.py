"""How much of a measured ratio is the luck of the process that measured it.

    python -m benchmarks.luck                   # about 9 minutes

The pruned networks of benchmarks/refill.py, each measured beside its dense one twice in each of
some processes, as a candidate of a calibration is. Two measurements in one process share its luck;
what processes differ by beyond that is the luck of one, which only more processes average out.
Each is also measured in rounds of fresh processes that take turns, one an engine, as a plan of
`prune` is: what a minute comes to in either way.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import environment, write_result
from calibration.isolated import IsolatedBench
from calibration.jobs import Setup
from calibration.phases import Phases
from calibration.several import ANCHOR, BLOCK_S, FEWEST, MOST, PLAN
from calibration.widths import WidthVector
from targets import load_target
from targets.base import Target, TargetOptions
from targets.blocks import measure_blocks

if TYPE_CHECKING:
    from benchmarks.refill import Case

PROCESSES, TIMES, ROUNDS = 6, 2, 2  # processes, measurements in each; rounds apart for each
LIMIT_S, MINUTE_S = 120.0, 60.0


def main() -> None:
    # here, since every measuring process imports this module and must not wait for torch
    import torch

    from benchmarks.refill import CASES

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        subjects = [_subject(case, Path(folder)) for case in CASES]
        together: dict[str, list[Timed]] = {each.name: [] for each in subjects}
        apart: dict[str, list[Timed]] = {each.name: [] for each in subjects}
        # by turns, so that the machine's moods hit all cases alike
        for _ in range(PROCESSES):
            for each in subjects:
                together[each.name].append(each.together(TIMES))
                apart[each.name] += [each.apart() for _ in range(ROUNDS)]
    found = {each.name: case(together[each.name], apart[each.name]) for each in subjects}
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


@dataclass(frozen=True)
class Timed:
    """What new processes measured."""

    ratios: list[float]
    seconds: float  # from their start to the first ratio


@dataclass(frozen=True)
class Subject:
    """A pruned network and its dense one, built, and the process that holds both."""

    name: str
    bench: IsolatedBench
    widths: WidthVector
    target: Target
    engines: Mapping[str, Path]

    def together(self, times: int) -> Timed:
        """The ratio to the dense network, `times` times in a new process."""
        began = perf_counter()
        with self.bench as bench:
            ratios = [bench.row(self.widths).ratio]
            seconds = perf_counter() - began
            ratios += [bench.row(self.widths).ratio for _ in range(times - 1)]
        return Timed(ratios, seconds)

    def apart(self) -> Timed:
        """The ratio in one round of two new processes."""
        began = perf_counter()
        blocks = measure_blocks(
            *(self.target.name, self.target.options, self.engines),
            processes=1,
            seconds_per_block=BLOCK_S,
        )
        ratio = blocks.median_ms(PLAN) / blocks.median_ms(ANCHOR)
        return Timed([ratio], perf_counter() - began)


def _subject(case: Case, folder: Path) -> Subject:
    slicer, widths = case.pruned()
    target = load_target(case.target, TargetOptions(threads=1))
    setup = Setup(slicer.skeleton, target.name, target.options, target.fingerprint())
    graphs = {PLAN: slicer.at_widths(widths), ANCHOR: slicer.skeleton.onnx_bytes}
    engines = {}
    for which, graph in graphs.items():
        path = folder / f"{case.name}-{which}{target.engine_suffix}"
        engines[which] = target.build(graph, path).engine
    bench = IsolatedBench(setup, Phases(), limit_s=LIMIT_S, anchor=engines[ANCHOR])
    return Subject(case.name, bench, widths, target, engines)


def case(together: list[Timed], apart: list[Timed]) -> dict[str, Any]:
    """What the processes of one network differ by, and what a minute of them tells."""
    within, between = spread([each.ratios for each in together])
    rounds = float(np.log([each.ratios for each in apart]).std(ddof=1))
    seconds, apart_s = (median(each.seconds for each in found) for found in (together, apart))
    return {
        "ratios": [each.ratios for each in together],
        "within": within,
        "between": between,
        "apart_ratios": [each.ratios[0] for each in apart],
        "apart": rounds,
        "seconds": seconds,
        "apart_seconds": apart_s,
        "minute": after_a_minute(math.hypot(within, between), seconds),
        "apart_minute": after_a_minute(rounds, apart_s),
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
