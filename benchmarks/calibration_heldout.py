"""Measures 100 networks that judge a calibration: `python -m benchmarks.calibration_heldout RUN`.

What others disturbed is measured again. With --again, every third network once more, on engines
of yet another process: no predictor can be nearer to a measurement than another measurement is.

They come from a sequence of another seed and, every second one, from groups that know nothing of
each other, as a solver mixes them; equally many from each tenth of the latency range. The range is
that of a line through MACs, so that no LPNet has a say.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.predictors import Problem, linear_in_macs
from calibration.database import LatencyDatabase
from calibration.isolated import IsolatedBench
from calibration.jobs import Setup
from calibration.measure import measure_calmly
from calibration.phases import Phases
from calibration.sampling import width_sequence
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector, legal_widths
from targets import load_target
from targets.base import Target, TargetOptions

COUNT, STRATA = 100, 10
POOL, SEED = 4000, 20_000
FILE, AGAIN = "heldout.sqlite", "heldout-again.sqlite"
EVERY = 3  # network is measured again
LIMIT_S = 600.0  # for one network


def proposals(skeleton: Skeleton, multiple: int) -> Iterator[WidthVector]:
    """Joint widths and independent ones in turns."""
    rng, groups = np.random.default_rng(SEED), skeleton.groups
    legal = [legal_widths(group.channels, multiple) for group in groups.prunable]
    for joint in width_sequence(groups, multiple, seed=SEED):
        yield joint
        yield WidthVector(groups.names, tuple(int(rng.choice(widths)) for widths in legal))


def stratified(problem: Problem, multiple: int) -> list[WidthVector]:
    """COUNT networks the calibration did not measure, STRATA equal parts of the range."""
    known = {record.widths for record in problem.records}
    pool = list(dict.fromkeys(islice(proposals(problem.skeleton, multiple), POOL)))
    pool = [widths for widths in pool if widths not in known]
    predict = linear_in_macs(problem, range(len(problem.records)))
    expected = predict(np.array([widths.kept for widths in pool], float))
    edges = np.linspace(expected.min(), expected.max(), STRATA + 1)
    stratum = np.digitize(expected, edges[1:-1])
    chosen: list[int] = []
    for part in range(STRATA):
        chosen += np.flatnonzero(stratum == part)[: COUNT // STRATA].tolist()
    rest = [index for index in range(len(pool)) if index not in set(chosen)]
    return [pool[index] for index in (*chosen, *rest[: COUNT - len(chosen)])]


def measure(run: Path, *, again: bool) -> None:
    problem = Problem.open(run)
    options = TargetOptions(threads=problem.fingerprint.threads)
    target: Target = load_target(problem.fingerprint.target, options)
    if again:
        wanted = [record.widths for record in Problem.open(run, FILE).records[::EVERY]]
    else:
        wanted = stratified(problem, target.channel_multiple)
    file = run / (AGAIN if again else FILE)
    setup = Setup(problem.skeleton, target.name, options, target.fingerprint())
    with (
        LatencyDatabase(file) as database,
        IsolatedBench(setup, Phases(), limit_s=LIMIT_S) as bench,
    ):
        measure_calmly(bench, database, wanted, on_done=tell)


def tell(done: int, total: int) -> None:
    if done % 10 == 0:
        print(f"held out: {done} of {total}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    measure(given.run, again=given.again)
