"""What measured blocks say about a budget, and how a certificate states latencies and shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.budget import Budget
from targets.blocks import BlockRun
from targets.statistics import bootstrap_interval, required_samples

Verdict = Literal["met", "missed", "inconclusive"]
Interval = tuple[float, float]
FEWEST_PROCESSES = 5  # fewer blocks make no interval
PERCENTILES = (50, 90, 99)
MEDIAN = 50
TAIL_RESAMPLES = 1000  # of all calls, after each process
# who looks after every process and stops at the first interval that is clear finds too many that
# are; so a look before the last one asks for more (Haybittle and Peto's rule for trials)
LAST_LOOK, EARLY_LOOK = 0.95, 0.999


@dataclass(frozen=True)
class Judge:
    """Compares measured blocks with the budget; asked after every process."""

    budget: Budget
    percentile: int
    counted: Verdict | None = None  # of a budget that is a count: exact, whatever the clock says

    def verdict(self, blocks: BlockRun, confidence: float = LAST_LOOK) -> Verdict:
        """A relative budget is judged by the paired ratio: drift of the machine cancels."""
        if self.counted is not None:
            return self.counted
        if blocks.processes < FEWEST_PROCESSES or self._too_few(blocks):
            return "inconclusive"
        low, high = self.interval(blocks, confidence)
        if high <= self.budget.value:
            return "met"
        return "missed" if low > self.budget.value else "inconclusive"

    def is_clear_early(self, blocks: BlockRun) -> bool:
        """Whether more processes would not change the verdict; asked after each of them."""
        return self.verdict(blocks, EARLY_LOOK) != "inconclusive"

    def interval(self, blocks: BlockRun, confidence: float = LAST_LOOK) -> Interval:
        """Of what the budget bounds: ms of the engine, or its share of the dense one's."""
        if self.percentile == MEDIAN:
            engine = blocks.block_medians_ms("engine")
            each = blocks.ratios("engine", "dense") if self.budget.unit == "x" else engine
            return bootstrap_interval(each, confidence=confidence)
        return _over_blocks(blocks, lambda chosen: self._tail(blocks, chosen), confidence)

    def _tail(self, blocks: BlockRun, chosen: Iterable[int]) -> float:
        engine_ms = self._tail_ms(blocks, "engine", chosen)
        return engine_ms / (
            self._tail_ms(blocks, "dense", chosen) if self.budget.unit == "x" else 1
        )

    def dense_ms(self, blocks: BlockRun) -> float:
        """The latency of the dense engine that a relative budget is a share of."""
        if self.percentile == MEDIAN:
            return blocks.median_ms("dense")
        return self._tail_ms(blocks, "dense", range(blocks.processes))

    def doubts(self, blocks: BlockRun) -> tuple[str, ...]:
        """Reasons to distrust these blocks or the verdict, in words; empty if none."""
        needed = required_samples(self.percentile)
        few = (
            f"{name}: p{self.percentile} needs {needed} calls, there are {n}: raise --block-seconds"
            for name, n in self._too_few(blocks).items()
        )
        return (*blocks.doubts(), *few)

    def _too_few(self, blocks: BlockRun) -> dict[str, int]:
        """The clean calls of the engines, of those compared, that have too few for a verdict."""
        compared = ("engine", "dense") if self.budget.unit == "x" else ("engine",)
        calls = {name: sum(len(b.clean_ms) for b in blocks.blocks[name]) for name in compared}
        needed = required_samples(self.percentile)
        return {name: n for name, n in calls.items() if n < needed}

    def _tail_ms(self, blocks: BlockRun, name: str, chosen: Iterable[int]) -> float:
        """The percentile of the calls of these blocks: one block has too few to tell a tail."""
        pooled = np.concatenate([blocks.blocks[name][index].clean_ms for index in chosen])
        return float(np.percentile(pooled, self.percentile))


def _over_blocks(
    blocks: BlockRun, statistic: Callable[[NDArray[np.intp]], float], confidence: float
) -> Interval:
    """The interval of a statistic of chosen blocks, by bootstrap over whole blocks."""

    def each(drawn: NDArray[np.float64], axis: int) -> list[float]:
        assert axis == 1
        return [statistic(chosen) for chosen in drawn.astype(np.intp)]

    every = np.arange(blocks.processes)
    return bootstrap_interval(every, each, confidence=confidence, resamples=TAIL_RESAMPLES)


def distribution(blocks: BlockRun, name: str) -> dict[str, Any]:
    """Percentiles of one engine in ms; null where its samples are too few to tell."""
    samples = len(blocks.pooled_ms(name))
    tails = {
        f"p{p}": blocks.percentile_ms(name, p) if samples >= required_samples(p) else None
        for p in PERCENTILES
    }
    return {
        **tails,
        "p50": blocks.median_ms(name),
        "ci95": list(blocks.ci95_ms(name)),
        "samples": samples,
    }


def unmeasured() -> dict[str, Any]:
    """A distribution of an engine that was not there to be measured."""
    return {**{f"p{p}": None for p in PERCENTILES}, "ci95": None, "samples": 0}


def ratio_of(blocks: BlockRun, name: str, other: str) -> dict[str, Any]:
    """How many times slower `name` is than `other`, paired by process."""
    median, interval = blocks.ratio(name, other)
    return {"median": median, "ci95": list(interval)}


def share(top1: float, n: int) -> dict[str, Any]:
    """Top-1 of n images with its 95 % interval."""
    return {"top1": top1, "n": n, "ci95": list(wilson_ci95(top1, n))}


def wilson_ci95(share: float, n: int) -> tuple[float, float]:
    """Wilson score interval of a share of n trials, 95 %."""
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
