"""The latency of one engine, and of two against each other, from timed calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter_ns
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from targets.fingerprint import Fingerprint
from targets.loop import time_calls
from targets.samples import Samples
from targets.statistics import bootstrap_ci95, low_quantile, percentile_of

if TYPE_CHECKING:
    from targets.base import Engine

__all__ = [
    "Comparison",
    "Measurement",
    "Samples",
    "bootstrap_ci95",
    "compare",
    "measure",
    "time_calls",
    "warm_up",
]

WINDOW_MS = 5.0  # of a warm-up window
MAX_WINDOWS = 50
WARM_AGREEMENT = 0.02  # of two successive windows' medians
FEW_SAMPLES = 30

# After another network's turn a network with megabytes of weights takes some 8 calls, the first of
# them twice as long, until the shared cache holds it again as where it is served
# (benchmarks/refill.py); what takes long to call does not fit there anyhow
REFILL_CALLS, REFILL_MS = 8, 16.0  # whichever is less
TURN_MS = 1.5  # of timed calls at least; as many as those that refill, so half of the time counts
MIN_ROUNDS = 6
SETTLING_NS = 100_000_000  # of timed calls; the very first rounds favour one of two by some 0.3 %
CHECK_FACTOR = 1.5  # rounds between two looks at the interval: each look is a chance to be wrong
LONGER_ROUND = 1.5  # than the rounds so far: the engine that runs outside has the extra call
MEASURING_SHARE = 0.95  # of the time limit; what is left is for the bootstrap
WARM_UP_SHARE = 0.15  # of the time limit, for each engine
# No number of rounds averages out where the networks' memory came to lie and how short turns differ
# from long ones, each worth some 0.3 % of the ratio, nor how warm preempted calls left the caches:
# relative half widths, the second times the share of disturbed calls (benchmarks/timing.py).
MEMORY_ERROR, DISTURBED_ERROR = 0.005, 0.02
# the anchor is the same in all rounds: where it moves more, its threads lost their cores at times,
# and two networks need not suffer from that in the same proportion
MAX_ANCHOR_SPREAD = 0.10


def warm_up(engine: Engine, *, limit_s: float = 2.0) -> int:
    """Call the engine until two successive windows' medians agree within 2 %; return the calls.

    A window lasts about 5 ms. Gives up after 50 windows or `limit_s`, whichever comes first.
    """
    calls, _ = _warmed_up(engine, limit_s)
    return calls


def _warmed_up(engine: Engine, limit_s: float) -> tuple[int, Samples]:
    """The number of calls that `warm_up` made, and the last of them."""
    deadline = perf_counter_ns() + round(limit_s * 1e9)
    engine.time_ms(1)  # pays for lazy allocation, so it does not size the windows
    last = engine.time_ms(1)
    window = calls_lasting(WINDOW_MS, last, fewest=1 if last.ms[0] > WINDOW_MS else 3)
    previous_ms, calls = math.inf, 2
    for _ in range(MAX_WINDOWS):
        if perf_counter_ns() >= deadline:
            break
        last = engine.time_ms(window)
        calls += window
        median_ms = last.median_ms()
        if abs(median_ms - previous_ms) <= WARM_AGREEMENT * min(median_ms, previous_ms):
            break
        previous_ms = median_ms
    return calls, last


def calls_lasting(duration_ms: float, samples: Samples, *, fewest: int, most: int = 1000) -> int:
    """How many calls like these fill `duration_ms`, within `fewest` and `most`."""
    call_ms = max(float(np.median(samples.ms)), 1e-6)
    return min(most, max(fewest, math.ceil(duration_ms / call_ms)))


@dataclass(frozen=True)
class Measurement:
    """A latency with its evidence: every timed call, in order; warm-up left out."""

    samples: Samples
    warmup_calls: int
    batch: int  # images per call
    fingerprint: Fingerprint

    def median_ms(self) -> float:
        """The median of the clean calls."""
        return self.samples.median_ms()

    def percentile_ms(self, percentile: float) -> float:
        """A percentile of the clean calls; ValueError if they are too few (p99: under 299)."""
        return percentile_of(self.samples.clean_ms, percentile)

    def doubts(self) -> tuple[str, ...]:
        """Reasons to distrust this measurement, in words; empty if none."""
        few = f"only {len(self.samples)} calls were timed"
        return ((few,) if len(self.samples) < FEW_SAMPLES else ()) + self.samples.doubts()


def measure(engine: Engine, fingerprint: Fingerprint, *, calls: int = 400) -> Measurement:
    """Warm one engine up by rule and time it alone; to rank engines use `compare` instead."""
    warmup_calls = warm_up(engine)
    return Measurement(engine.time_ms(calls), warmup_calls, engine.input_shape[0], fingerprint)


@dataclass(frozen=True)
class Comparison:
    """How long a candidate takes as a multiple of an anchor, from interleaved rounds."""

    ratio: float  # median over rounds of candidate / anchor
    ratio_ci95: tuple[float, float]  # bootstrap over rounds, and what no round can tell
    round_ratios: tuple[float, ...]  # of the low quantiles of each round's clean calls
    candidate: Samples  # all rounds, in order
    anchor: Samples
    calls_per_round: int  # of the candidate
    precision: float  # wished half width of the interval over the ratio
    warmup_calls: tuple[int, int]  # candidate, anchor

    @property
    def is_precise(self) -> bool:
        """Whether enough rounds narrowed the interval to the wished precision."""
        return len(self.round_ratios) >= MIN_ROUNDS and self.relative_error <= self.precision

    @property
    def anchor_round_ms(self) -> NDArray[np.float64]:
        """The anchor's low quantile in each round, (rounds,), to hold against its long-run one."""
        rounds = self.anchor.split(len(self.anchor) // len(self.round_ratios))
        return np.array([low_quantile(part.clean_ms) for part in rounds])

    @property
    def relative_error(self) -> float:
        """Half the interval's width over the ratio."""
        return relative_half(self.ratio, self.ratio_ci95)

    def beside(self, companions: int) -> Self:
        """The same, where so many of the GPU's other processes were known and idle."""
        candidate, anchor = (part.beside(companions) for part in (self.candidate, self.anchor))
        return replace(self, candidate=candidate, anchor=anchor)

    def doubts(self) -> tuple[str, ...]:
        """Reasons to distrust the ratio, in words; empty if none."""
        return (*self.disturbances(), *imprecision(self.relative_error, self.precision))

    def disturbances(self) -> tuple[str, ...]:
        """What went wrong, in words, however precise the ratio is."""
        found: list[str] = []
        if len(self.round_ratios) < MIN_ROUNDS:
            found.append(f"only {len(self.round_ratios)} of at least {MIN_ROUNDS} rounds were done")
        q25, median, q75 = np.quantile(self.anchor_round_ms, (0.25, 0.5, 0.75))
        if q75 - q25 > MAX_ANCHOR_SPREAD * median:
            found.append(
                f"the anchor's own time moved by {(q75 - q25) / median:.0%} between rounds"
            )
        found += (f"candidate: {doubt}" for doubt in self.candidate.doubts())
        found += (f"anchor: {doubt}" for doubt in self.anchor.doubts())
        return tuple(found)


def relative_half(ratio: float, ci95: tuple[float, float]) -> float:
    """Half the interval's width over the ratio."""
    low, high = ci95
    return (high - low) / 2 / ratio


def imprecision(error: float, wish: float) -> tuple[str, ...]:
    """The doubt of a ratio known to this relative error only; empty if it is precise."""
    if error <= wish:
        return ()
    return (f"the ratio is known to {error:.1%} only, where {wish:.1%} was wanted",)


def compare(
    candidate: Engine,
    anchor: Engine,
    *,
    rounds: int = 400,
    calls: int | None = None,
    precision: float = 0.01,
    limit_s: float = 3.0,
) -> Comparison:
    """Time two loaded engines in short interleaved rounds until their ratio is known.

    A round is ABBA, with `calls` timed calls a letter (None: as many as refill the caches that the
    other engine left cold, and at least some 1.5 ms). Stops when half
    the 95 % interval is within `precision` of the ratio, asked after 6, 9, 14, 21, ... rounds, not
    before 0.1 s; or after `rounds`; or before the round that would outlast `limit_s`, warm-up
    included.
    """
    start = perf_counter_ns()
    limit_ns = MEASURING_SHARE * limit_s * 1e9
    warm = [_warmed_up(engine, WARM_UP_SHARE * limit_s) for engine in (candidate, anchor)]
    warmup_calls = warm[0][0], warm[1][0]
    turns = [Turn.of(samples, calls) for _, samples in warm]
    pairs: list[tuple[Samples, Samples]] = []
    check, timed_ns, began = MIN_ROUNDS, 0, perf_counter_ns()
    while True:
        pairs.append(_time_round((candidate, anchor), turns, candidate_outside=len(pairs) % 2 == 0))
        timed_ns += sum(int(samples.wall_ns.sum()) for samples in pairs[-1])
        now = perf_counter_ns()
        next_ns = LONGER_ROUND * (now - began) / len(pairs)
        done = len(pairs) >= rounds or now + next_ns - start > limit_ns
        if done or (len(pairs) >= check and timed_ns >= SETTLING_NS):
            check = math.ceil(CHECK_FACTOR * len(pairs))
            found = _comparison(pairs, precision, warmup_calls)
            if done or found.is_precise:
                return found


@dataclass(frozen=True)
class Turn:
    """How often an engine is called when its turn comes."""

    refill: int  # calls first, not counted: the caches hold the other engine's data
    timed: int

    @classmethod
    def of(cls, warm: Samples, timed: int | None) -> Self:
        """For an engine whose calls take as long as these; `timed` calls, or as many as it needs.

        A long call needs no second to be told from noise.
        """
        refill = calls_lasting(REFILL_MS, warm, fewest=1, most=REFILL_CALLS)
        if timed is None:
            fewest = 1 if np.median(warm.ms) > WINDOW_MS else 2
            timed = max(refill, calls_lasting(TURN_MS, warm, fewest=fewest))
        return cls(refill, timed)

    def take(self, engine: Engine, times: int = 1) -> Samples:
        """The turn's timed calls, `times` as many."""
        return engine.time_ms(self.refill + times * self.timed).after(self.refill)


def _time_round(
    engines: tuple[Engine, Engine], turns: Sequence[Turn], *, candidate_outside: bool
) -> tuple[Samples, Samples]:
    """Samples of candidate and anchor: one ran before and after, the other in between."""
    out, inside = (0, 1) if candidate_outside else (1, 0)
    before = turns[out].take(engines[out])
    between = turns[inside].take(engines[inside], times=2)
    outside = Samples.concatenate([before, turns[out].take(engines[out])])
    return (outside, between) if candidate_outside else (between, outside)


def _comparison(
    pairs: Sequence[tuple[Samples, Samples]], precision: float, warmup_calls: tuple[int, int]
) -> Comparison:
    ratios = [low_quantile(ours.clean_ms) / low_quantile(anchor.clean_ms) for ours, anchor in pairs]
    candidate = Samples.concatenate(ours for ours, _ in pairs)
    anchor = Samples.concatenate(anchor for _, anchor in pairs)
    clean = np.concatenate([candidate.clean, anchor.clean])
    error = math.hypot(MEMORY_ERROR, DISTURBED_ERROR * (1.0 - float(np.mean(clean))))
    return Comparison(
        ratio=float(np.median(ratios)),
        ratio_ci95=_interval(ratios, error),
        round_ratios=tuple(ratios),
        candidate=candidate,
        anchor=anchor,
        calls_per_round=len(pairs[0][0]),
        precision=precision,
        warmup_calls=warmup_calls,
    )


def _interval(ratios: Sequence[float], error: float) -> tuple[float, float]:
    """The 95 % interval of the ratios' median, widened by an independent relative `error`."""
    ratio = float(np.median(ratios))
    low, high = bootstrap_ci95(ratios)
    below, above = (math.hypot(side, error * ratio) for side in (ratio - low, high - ratio))
    return ratio - below, ratio + above
