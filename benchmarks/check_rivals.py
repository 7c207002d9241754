"""What other gates would have said about the same timed calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pipeline.check.latency import comparable_ms
from targets.samples import Samples

MEAN_THRESHOLD = 0.05  # pytest-benchmark: --benchmark-compare-fail=mean:5%
T_LEVEL = 0.01
FIXED_RULE = 0.10


@dataclass(frozen=True)
class Block:
    """One block of calls in numbers; of all calls but for `comparable_ms`, as the gates need."""

    comparable_ms: float  # what `pipeline check` makes its ratio of
    median_ms: float
    mean_ms: float
    variance: float  # ms^2, of single calls
    calls: int
    disturbed: float  # share of the calls

    @classmethod
    def of(cls, samples: Samples) -> Block:
        return cls(
            comparable_ms=comparable_ms(samples, 50),
            median_ms=float(np.median(samples.ms)),
            mean_ms=float(samples.ms.mean()),
            variance=float(samples.ms.var()),
            calls=len(samples),
            disturbed=1.0 - float(np.mean(samples.clean)),
        )


@dataclass(frozen=True)
class _Pooled:
    mean_ms: float
    variance: float
    calls: int
    median_ms: float  # of the blocks' medians, as near as blocks allow

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> _Pooled:
        calls = np.array([block.calls for block in blocks])
        means = np.array([block.mean_ms for block in blocks])
        variances = np.array([block.variance for block in blocks])
        mean = float(np.average(means, weights=calls))
        spread = float(np.average(variances + (means - mean) ** 2, weights=calls))
        median = float(np.median([block.median_ms for block in blocks]))
        return cls(mean, spread, int(calls.sum()), median)


Rule = Callable[[_Pooled, _Pooled], bool]


def _mean_threshold(ours: _Pooled, theirs: _Pooled) -> bool:
    return ours.mean_ms / theirs.mean_ms - 1 > MEAN_THRESHOLD


def _t_test(ours: _Pooled, theirs: _Pooled) -> bool:
    found = stats.ttest_ind_from_stats(
        *(ours.mean_ms, math.sqrt(ours.variance), ours.calls),
        *(theirs.mean_ms, math.sqrt(theirs.variance), theirs.calls),
        equal_var=False,
        alternative="greater",
    )
    return bool(found.pvalue < T_LEVEL)


def _fixed_rule(ours: _Pooled, theirs: _Pooled) -> bool:
    return ours.median_ms / theirs.median_ms - 1 > FIXED_RULE


RULES: dict[str, Rule] = {
    "pytest-benchmark mean:5%": _mean_threshold,
    "t-test, p < 0.01": _t_test,
    "fixed 10 % rule": _fixed_rule,
}


def alarms(candidate: Sequence[Block], baseline: Sequence[Block]) -> dict[str, bool]:
    """Which rules would have failed the candidate, by name."""
    ours, theirs = _Pooled.of(candidate), _Pooled.of(baseline)
    return {name: rule(ours, theirs) for name, rule in RULES.items()}
