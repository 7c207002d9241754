"""Measures 100 networks that judge a calibration: `python -m benchmarks.calibration_heldout RUN`.

All of them in several rounds, each on engines of another process: where engines come to lie in
memory differs from load to load, and no predictor can know it. There are as many rounds as it
takes until the networks' mean is known well enough, at most five. What others disturbed is
measured again.

They come from a sequence of another seed and, every second one, from groups that know nothing of
each other, as a solver mixes them; equally many from each tenth of the latency range. The range is
that of a line through MACs, so that no LPNet has a say.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.predictors import Array, Problem, linear_in_macs
from benchmarks.repeated import repeat_disturbed
from calibration.database import LatencyDatabase
from calibration.isolated import IsolatedBench
from calibration.jobs import Setup
from calibration.measure import measure_all
from calibration.phases import Phases
from calibration.sampling import width_sequence
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector, legal_widths
from targets import load_target
from targets.base import Target, TargetOptions

COUNT, STRATA = 100, 10
POOL, SEED = 4000, 20_000
FEWEST, MOST = 2, 5  # rounds
KNOWN = 0.015  # standard error of a network's mean log ratio that is good enough
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


@dataclass(frozen=True)
class HeldOut:
    """The networks of all rounds, with their geometric mean ratios as records."""

    problem: Problem
    log_ratios: Array  # (rounds, N)

    @classmethod
    def open(cls, run: Path) -> HeldOut | None:
        """All whole rounds of a run folder; None if there is none."""
        rounds: list[Problem] = []
        while (run / file_of(len(rounds))).exists():
            found = Problem.open(run, file_of(len(rounds)))
            if len(found.records) < COUNT:
                break
            rounds.append(found)
        return cls.of(rounds) if rounds else None

    @classmethod
    def of(cls, rounds: Sequence[Problem]) -> HeldOut:
        """From the same networks, in any order."""
        order = [record.widths for record in rounds[0].records]
        ratios = [{record.widths: record.ratio for record in found.records} for found in rounds]
        logs = np.log([[of_round[widths] for widths in order] for of_round in ratios])
        means = zip(rounds[0].records, np.exp(logs.mean(axis=0)), strict=True)
        records = tuple(replace(record, ratio=float(ratio)) for record, ratio in means)
        return cls(replace(rounds[0], records=records), logs)

    def without(self, known: Collection[WidthVector]) -> HeldOut:
        """Those that a calibration did not measure, such as one made anew since."""
        records = self.problem.records
        unseen = [index for index, record in enumerate(records) if record.widths not in known]
        kept = replace(self.problem, records=tuple(records[index] for index in unseen))
        return HeldOut(kept, self.log_ratios[:, unseen])

    @property
    def rounds(self) -> int:
        return len(self.log_ratios)

    @property
    def spread(self) -> float:
        """The standard deviation of one measurement's log ratio, over all networks."""
        return float(np.sqrt(np.var(self.log_ratios, axis=0, ddof=1).mean()))

    @property
    def standard_error(self) -> float:
        """Of a network's mean log ratio."""
        return self.spread / math.sqrt(self.rounds)

    @property
    def suffices(self) -> bool:
        return self.rounds >= FEWEST and (self.rounds >= MOST or self.standard_error <= KNOWN)


def file_of(number: int) -> str:
    """Of a round, counted from 0, in the run folder."""
    return f"heldout-{number}.sqlite"


def measure(run: Path) -> None:
    """One round after the other; what is measured stays measured."""
    found = HeldOut.open(run)
    while found is None or not found.suffices:
        done = 0 if found is None else found.rounds
        measure_round(run, found)
        found = HeldOut.open(run)
        if found is None or found.rounds == done:
            raise SystemExit(
                f"networks of {run / file_of(done)} were lost while they were measured"
            )
        if found.rounds > 1:
            print(f"held out: {found.rounds} rounds, known to {found.standard_error:.2%}")


def measure_round(run: Path, before: HeldOut | None) -> None:
    problem = Problem.open(run)
    options = TargetOptions(threads=problem.fingerprint.threads)
    target: Target = load_target(problem.fingerprint.target, options)
    if before is None:
        number, wanted = 0, stratified(problem, target.channel_multiple)
    else:
        number, wanted = before.rounds, [record.widths for record in before.problem.records]
    setup = Setup(problem.skeleton, target.name, options, target.fingerprint())
    with (
        LatencyDatabase(run / file_of(number)) as database,
        IsolatedBench(setup, Phases(), limit_s=LIMIT_S) as bench,
    ):
        measure_all(bench, database, wanted, on_done=tell)
        repeat_disturbed(bench, database, wanted)


def tell(done: int, total: int) -> None:
    if done % 10 == 0:
        print(f"held out: {done} of {total}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    measure(given.run)
