"""The latency of the few networks that must be known well, measured as `verify` will measure it.

In a process of its own, as where it is served, a network's memory comes to lie elsewhere than
beside another one, and where it lies stays that process's own. So plan and anchor each have a fresh
process, these take turns, and many rounds are asked briefly (`targets.blocks`): what prune takes
for met is what the certificate will say. ResNet-18's ratios on OpenVINO came to 0.95 of those from
processes that held both (benchmarks/luck.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CandidateLostError
from calibration.isolated import IsolatedBench
from calibration.measure import scratch
from calibration.pace import calmer_half
from calibration.phases import TIMING, Phases
from calibration.rows import Row
from calibration.widths import WidthVector
from targets import load_target
from targets.blocks import BlockRun, measure_blocks
from targets.errors import EngineError
from targets.fingerprint import Fingerprint
from targets.samples import Samples
from targets.statistics import bootstrap_ci95
from targets.timing import relative_half

PLAN, ANCHOR = "plan", "anchor"
FEWEST, MOST = 6, 36  # rounds of two fresh processes
BLOCK_S = 0.3  # that each process is timed
PLAN_PRECISION = 0.006  # to which the latency of a proposed plan is to be known
ATTEMPTS = 2  # at timing a plan: the first process may have died of something else

Range = tuple[float, float]  # of ratios
Ratio = tuple[float, Range]  # and its 95 % interval


@dataclass(frozen=True)
class SeveralProcesses:
    """Times what its bench builds, beside the anchor, in several fresh processes of each."""

    bench: IsolatedBench
    anchor: Path  # the dense network's engine
    on_done: Callable[[int, int], None] | None = None  # given the rounds so far, and the most
    # ratios that are looked for: where one surely lies there, or surely elsewhere, that is enough
    between: Range | None = None

    @property
    def skeleton_sha256(self) -> str:
        return self.bench.skeleton_sha256

    @property
    def fingerprint(self) -> Fingerprint:
        return self.bench.fingerprint

    @property
    def phases(self) -> Phases:
        return self.bench.phases

    def row(self, widths: WidthVector, *, precision: float = 0.01) -> Row:
        """Measure one width vector until it is known to `precision`, within 6 to 36 rounds.

        CandidateLostError if it took a process with it, twice.
        """
        setup = self.bench.setup
        suffix = load_target(setup.target, setup.options).engine_suffix
        with scratch(setup.skeleton.onnx_bytes) as folder:
            engine = folder / f"{PLAN}{suffix}"
            self.bench.build(widths, engine)
            with self.phases.spent_on(TIMING):
                blocks = self._timed(engine, precision)
        ratio, ratio_ci95 = plan_ratio(blocks)
        return Row(
            self.skeleton_sha256,
            blocks.fingerprint,
            widths,
            ratio,
            ratio_ci95,
            Samples.concatenate(blocks.blocks[PLAN]),
            Samples.concatenate(blocks.blocks[ANCHOR]),
            len(blocks.blocks[PLAN][0]),
            blocks.doubts(),
            datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _timed(self, engine: Path, precision: float) -> BlockRun:
        setup, lost = self.bench.setup, ""

        def stop(blocks: BlockRun) -> bool:
            if self.on_done is not None:
                self.on_done(blocks.processes, MOST)
            return blocks.processes >= self._enough(blocks, precision)

        for _ in range(ATTEMPTS):
            try:
                blocks = measure_blocks(
                    setup.target,
                    setup.options,
                    {PLAN: engine, ANCHOR: self.anchor},
                    processes=MOST,
                    seconds_per_block=BLOCK_S,
                    stop=stop,
                )
                return blocks.beside(self.bench.contexts)
            except EngineError as error:
                lost = error.message
        raise CandidateLostError(f"could not be timed: {lost}")

    def _enough(self, blocks: BlockRun, precision: float) -> int:
        """Rounds after which there are no more."""
        if blocks.processes < FEWEST:
            return FEWEST
        ratio, (low, high) = plan_ratio(blocks)
        if relative_half(ratio, (low, high)) <= precision:
            return FEWEST
        looks = blocks.processes % FEWEST == 0  # who looks after every round stops at a lucky one
        return 2 * FEWEST if looks and self._is_decided(low, high) else MOST

    def _is_decided(self, low: float, high: float) -> bool:
        if self.between is None:
            return False
        least, most = self.between
        return high < least or low > most or (least <= low and high <= most)


def plan_ratio(blocks: BlockRun) -> Ratio:
    """Plan over anchor, paired by round: the geometric mean, and its 95 % interval.

    Of the calmer half only, where that tells more: where neighbours disturbed the others.
    """
    plan, anchor = (blocks.block_medians_ms(name) for name in (PLAN, ANCHOR))
    whole = _mean(plan / anchor)
    if blocks.processes < 2 * FEWEST:
        return whole
    calm = _mean((plan / anchor)[calmer_half(plan, anchor)])
    return min((whole, calm), key=lambda found: relative_half(*found))


def _mean(ratios: NDArray[np.float64]) -> Ratio:
    """Luck with memory comes in kinds, between which a median jumps."""
    logs = np.log(ratios)
    low, high = bootstrap_ci95(logs, np.mean)
    return math.exp(float(logs.mean())), (math.exp(low), math.exp(high))
