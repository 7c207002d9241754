"""The one timing loop of all targets, and the estimates made from it."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from resource import RUSAGE_SELF, getrusage
from time import perf_counter_ns, process_time_ns
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from targets import machine
from targets.fingerprint import Fingerprint
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

WINDOW_MS = 5.0  # of a warm-up window and of each engine's share in a round
MAX_WINDOWS = 50
WARM_AGREEMENT = 0.02  # of two successive windows' medians
MIN_ROUNDS = 5
FEW_SAMPLES = 30
# the anchor is the same in all rounds: where it moves more, its threads lost their cores at times,
# and two networks need not suffer from that in the same proportion
MAX_ANCHOR_SPREAD = 0.10


def time_calls(call: Callable[[], object], n: int) -> Samples:
    """Time `n` successive calls; garbage is collected before and after, never meanwhile."""
    if n < 1:
        raise ValueError(f"at least one call must be timed, not {n}")
    wall_ns, cpu_ns, switches = (np.zeros(n, np.int64) for _ in range(3))
    collected = gc.isenabled()
    gc.disable()
    steal, throttled = machine.steal_ticks(), machine.throttled_us()
    try:
        _timed_loop(call, wall_ns, cpu_ns, switches)
    finally:
        if collected:
            gc.enable()
    return Samples(
        wall_ns,
        cpu_ns,
        switches,
        steal_ticks=max(0, machine.steal_ticks() - steal),
        throttled_us=max(0, machine.throttled_us() - throttled),
    )


def _timed_loop(
    call: Callable[[], object],
    wall_ns: NDArray[np.int64],
    cpu_ns: NDArray[np.int64],
    switches: NDArray[np.int64],
) -> None:
    """Fill the (n,) columns in place; only `call` stands between the two wall clock readings."""
    switches_before = getrusage(RUSAGE_SELF).ru_nivcsw
    for index in range(len(wall_ns)):
        cpu_start = process_time_ns()
        start = perf_counter_ns()
        call()
        end = perf_counter_ns()
        cpu_ns[index] = process_time_ns() - cpu_start
        wall_ns[index] = end - start
        switches_after = getrusage(RUSAGE_SELF).ru_nivcsw
        switches[index] = switches_after - switches_before
        switches_before = switches_after


def warm_up(engine: Engine, *, limit_s: float = 2.0) -> int:
    """Call the engine until two successive windows' medians agree within 2 %; return the calls.

    A window lasts about 5 ms. Gives up after 50 windows or `limit_s`, whichever comes first.
    """
    deadline = perf_counter_ns() + round(limit_s * 1e9)
    engine.time_ms(1)  # pays for lazy allocation, so it does not size the windows
    window = calls_lasting(WINDOW_MS, engine.time_ms(1), fewest=3)
    previous_ms, calls = math.inf, 2
    for _ in range(MAX_WINDOWS):
        median_ms = float(np.median(engine.time_ms(window).clean_ms))
        calls += window
        if abs(median_ms - previous_ms) <= WARM_AGREEMENT * min(median_ms, previous_ms):
            break
        if perf_counter_ns() >= deadline:
            break
        previous_ms = median_ms
    return calls


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
        return float(np.median(self.samples.clean_ms))

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
    ratio_ci95: tuple[float, float]  # bootstrap over rounds
    round_ratios: tuple[float, ...]  # of the low quantiles of each round's clean calls
    candidate: Samples  # all rounds, in order
    anchor: Samples
    calls_per_round: int  # of each engine
    precision: float  # wished half width of the interval over the ratio
    warmup_calls: tuple[int, int]  # candidate, anchor

    @property
    def round_index(self) -> NDArray[np.int64]:
        """The round of each sample, (n,), the same for candidate and anchor."""
        return np.arange(len(self.candidate), dtype=np.int64) // self.calls_per_round

    @property
    def is_precise(self) -> bool:
        """Whether enough rounds narrowed the interval to the wished precision."""
        return len(self.round_ratios) >= MIN_ROUNDS and self.relative_error <= self.precision

    @property
    def anchor_round_ms(self) -> NDArray[np.float64]:
        """The anchor's low quantile in each round, (rounds,), to hold against its long-run one."""
        rounds = self.anchor.split(self.calls_per_round)
        return np.array([low_quantile(part.clean_ms) for part in rounds])

    @property
    def relative_error(self) -> float:
        """Half the interval's width over the ratio."""
        low, high = self.ratio_ci95
        return (high - low) / 2 / self.ratio

    def doubts(self) -> tuple[str, ...]:
        """Reasons to distrust the ratio, in words; empty if none."""
        found: list[str] = []
        if len(self.round_ratios) < MIN_ROUNDS:
            found.append(f"only {len(self.round_ratios)} of at least {MIN_ROUNDS} rounds were done")
        if self.relative_error > self.precision:
            error, wish = f"{self.relative_error:.1%}", f"{self.precision:.1%}"
            found.append(f"the ratio is known to {error} only, where {wish} was wanted")
        q25, median, q75 = np.quantile(self.anchor_round_ms, (0.25, 0.5, 0.75))
        if q75 - q25 > MAX_ANCHOR_SPREAD * median:
            found.append(
                f"the anchor's own time moved by {(q75 - q25) / median:.0%} between rounds"
            )
        found += (f"candidate: {doubt}" for doubt in self.candidate.doubts())
        found += (f"anchor: {doubt}" for doubt in self.anchor.doubts())
        return tuple(found)


def compare(
    candidate: Engine,
    anchor: Engine,
    *,
    rounds: int = 60,
    calls: int | None = None,
    precision: float = 0.01,
    limit_s: float = 5.0,
) -> Comparison:
    """Time two loaded engines in short interleaved rounds, ABBA, until the ratio is known.

    Each round times `calls` calls of both (None: as many as last some 5 ms each). Stops after at
    least 5 rounds when half the 95 % interval is within `precision` of the ratio; or after
    `rounds`; or after the round in which `limit_s` ran out. Warm-up comes on top.
    """
    warmup_calls = warm_up(candidate), warm_up(anchor)
    if calls is None:
        both = Samples.concatenate([candidate.time_ms(2), anchor.time_ms(2)])
        calls = calls_lasting(WINDOW_MS, both, fewest=2)
    deadline = perf_counter_ns() + round(limit_s * 1e9)
    pairs: list[tuple[Samples, Samples]] = []
    while True:
        pairs.append(_time_round(candidate, anchor, calls, candidate_first=len(pairs) % 2 == 0))
        done = len(pairs) >= rounds or perf_counter_ns() >= deadline
        if not done and len(pairs) < MIN_ROUNDS:
            continue
        found = _comparison(pairs, precision, warmup_calls)
        if done or found.is_precise:
            return found


def _time_round(
    candidate: Engine, anchor: Engine, calls: int, *, candidate_first: bool
) -> tuple[Samples, Samples]:
    """Samples of candidate and anchor, whichever ran first."""
    if candidate_first:
        candidate_samples = candidate.time_ms(calls)
        return candidate_samples, anchor.time_ms(calls)
    anchor_samples = anchor.time_ms(calls)
    return candidate.time_ms(calls), anchor_samples


def _comparison(
    pairs: Sequence[tuple[Samples, Samples]], precision: float, warmup_calls: tuple[int, int]
) -> Comparison:
    ratios = [low_quantile(ours.clean_ms) / low_quantile(anchor.clean_ms) for ours, anchor in pairs]
    return Comparison(
        ratio=float(np.median(ratios)),
        ratio_ci95=bootstrap_ci95(ratios),
        round_ratios=tuple(ratios),
        candidate=Samples.concatenate(ours for ours, _ in pairs),
        anchor=Samples.concatenate(anchor for _, anchor in pairs),
        calls_per_round=len(pairs[0][0]),
        precision=precision,
        warmup_calls=warmup_calls,
    )
