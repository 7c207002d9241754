"""Measured blocks against limits: the gates `slowdown` and `budget`, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.check.boundary import Boundary
from pipeline.check.course import Course
from pipeline.check.result import Cause, Gate, Latency, Verdict
from pipeline.check.sides import Sides
from pipeline.errors import FingerprintError, InconclusiveError
from pipeline.report.numbers import ms
from targets.blocks import BlockRun, measure_blocks
from targets.doubts import disturbances_of
from targets.samples import Samples
from targets.statistics import low_quantile, percentile_of

Ended = Literal["verdict", "time", "processes"]
LABEL = "fresh processes"


class Told(Protocol):
    """Who hears of the progress."""

    def progress(self, label: str, done: int, total: int, note: str = "") -> None: ...


@dataclass(frozen=True)
class Limits:
    """What the latency may be."""

    slowdown: float | None = None  # share by which the candidate may be slower than the baseline
    budget_ms: float | None = None
    percentile: int = 50
    certified_ms: float | None = None  # the baseline's, on this very set-up


@dataclass(frozen=True)
class Effort:
    """How long to measure at most."""

    processes: int
    block_seconds: float
    seconds: float


@dataclass(frozen=True)
class Trial:
    """Blocks so far, held against the limits."""

    blocks: BlockRun
    limits: Limits
    boundary: Boundary

    def block_ms(self, name: str) -> NDArray[np.float64]:
        """The judged percentile of each block's clean calls, (processes,)."""
        return self._each(name, lambda s: percentile_of(s.clean_ms, self.limits.percentile))

    def log_ratios(self) -> NDArray[np.float64]:
        """log(candidate / baseline) of each process, (processes,)."""
        ours, theirs = (
            self._each(name, lambda s: comparable_ms(s, self.limits.percentile))
            for name in ("candidate", "baseline")
        )
        return np.log(ours / theirs)

    def _each(self, name: str, statistic: Callable[[Samples], float]) -> NDArray[np.float64]:
        """A statistic of every block, (processes,); InconclusiveError if one has too few calls."""
        try:
            return np.array([statistic(samples) for samples in self.blocks.blocks[name]])
        except ValueError as error:
            raise InconclusiveError(f"{name}: {error}", fix="raise --block-seconds") from error

    def verdicts(self) -> dict[str, Verdict]:
        """By gate; only those that have a limit."""
        found: dict[str, Verdict] = {}
        if self.limits.slowdown is not None:
            limit = math.log1p(self.limits.slowdown)
            found["slowdown"] = side_of(self.boundary.interval(self.log_ratios()), limit)
        if self.limits.budget_ms is not None:
            found["budget"] = "inconclusive" if self.slow_machine else self._by_the_clock()
        return found

    @property
    def slow_machine(self) -> bool:
        """Over the budget by the clock, but not beside a baseline that was once certified here.

        Neighbours slow both engines: what they cost is no regression of the candidate's.
        """
        if self.limits.budget_ms is None or self.limits.certified_ms is None:
            return False
        return self._by_the_clock() == "regression" and self._as_certified() != "regression"

    def as_certified_ms(self) -> NDArray[np.float64]:
        """The candidate, were the baseline as fast as certified, (processes,)."""
        assert self.limits.certified_ms is not None
        return self.limits.certified_ms * np.exp(self.log_ratios())

    def _by_the_clock(self) -> Verdict:
        return self._of_budget(self.block_ms("candidate"))

    def _as_certified(self) -> Verdict:
        return self._of_budget(self.as_certified_ms())

    def _of_budget(self, values: NDArray[np.float64]) -> Verdict:
        assert self.limits.budget_ms is not None
        return side_of(self.boundary.interval(values), self.limits.budget_ms)

    @property
    def is_decided(self) -> bool:
        """Whether more processes cannot change the overall verdict."""
        verdicts = self.verdicts()
        if "regression" in verdicts.values():
            return True
        if self.slow_machine and self._as_certified() == "pass":
            del verdicts["budget"]  # more processes make no machine faster
        return bool(verdicts) and "inconclusive" not in verdicts.values()

    def latency(self, name: str) -> Latency:
        per_block = self.block_ms(name)
        return Latency(
            ms=float(np.median(per_block)),
            interval=self.boundary.interval(per_block),
            block_ms=tuple(float(value) for value in per_block),
            calls=len(self.blocks.pooled_ms(name)),
        )


def comparable_ms(samples: Samples, percentile: int) -> float:
    """What the ratio of two engines is made of: a high percentile is itself.

    For the median stands the low quantile, as when candidates are ranked: neighbours only ever
    delay calls, and it errs less than half as much where another process shares the core.
    """
    if percentile == 50:
        return low_quantile(samples.clean_ms)
    return percentile_of(samples.clean_ms, percentile)


def side_of(interval: tuple[float, float] | None, limit: float) -> Verdict:
    """Pass below the limit, regression above it; an interval that holds it decides nothing."""
    if interval is None:
        return "inconclusive"
    low, high = interval
    if high < limit:
        return "pass"
    return "regression" if low > limit else "inconclusive"


def measure(
    sides: Sides, limits: Limits, boundary: Boundary, effort: Effort, told: Told
) -> tuple[Trial, Ended, float]:
    """Fresh processes until a verdict, or the end of the time; and the seconds it took.

    Stops before the process that would outlast the time. InconclusiveError if the set-up changed
    between two processes.
    """
    began = time.monotonic()
    ended: Ended = "processes"

    def stop(blocks: BlockRun) -> bool:
        nonlocal ended
        trial, spent = Trial(blocks, limits, boundary), time.monotonic() - began
        told.progress(LABEL, blocks.processes, effort.processes, _note(trial))
        if blocks.processes >= boundary.fewest and trial.is_decided:
            ended = "verdict"
        elif spent + spent / blocks.processes > effort.seconds:
            ended = "time"
        return ended != "processes"

    try:
        blocks = measure_blocks(
            sides.target.name,
            sides.target.options,
            sides.engines(),
            processes=effort.processes,
            seconds_per_block=effort.block_seconds,
            stop=stop,
        )
    except FingerprintError as error:
        raise InconclusiveError(
            f"the machine changed while it measured: {error.message}",
            fix="leave clocks, quotas and affinities alone meanwhile, and check again",
        ) from error
    return Trial(blocks, limits, boundary), ended, time.monotonic() - began


def gates_of(trial: Trial, ended: Ended) -> tuple[Gate, ...]:
    """The gates that have a limit, with their evidence in words."""
    verdicts, limits = trial.verdicts(), trial.limits
    gates = []
    if limits.slowdown is not None:
        logs = trial.log_ratios()
        gate = _gate("slowdown", verdicts["slowdown"], np.expm1(logs), limits.slowdown, trial)
        gates.append(_explained(gate, trial, ended, logs, math.log1p(limits.slowdown)))
    if limits.budget_ms is not None:
        values = trial.block_ms("candidate")
        gate = _gate("budget", verdicts["budget"], values, limits.budget_ms, trial)
        gates.append(_explained(gate, trial, ended, np.log(values), math.log(limits.budget_ms)))
    return tuple(gates)


def _gate(
    name: str, verdict: Verdict, values: NDArray[np.float64], limit: float, trial: Trial
) -> Gate:
    value, interval = float(np.median(values)), trial.boundary.interval(values)
    shown = _percent if name == "slowdown" else _ms
    between = "" if interval is None else f" ({shown(interval[0])} to {shown(interval[1])})"
    at_most = f"at most {limit:.3g} ms" if name == "budget" else f"at most {_percent(limit)}"
    found, course = f"{shown(value)}{between}", Course.of(values, trial.boundary, limit)
    return Gate(name, verdict, found, at_most, value, interval, course=course)


def _explained(
    gate: Gate, trial: Trial, ended: Ended, logs: NDArray[np.float64], limit: float
) -> Gate:
    """The same gate; if it is inconclusive, with its cause and what could have been seen."""
    if gate.verdict != "inconclusive":
        return gate
    if gate.name == "budget" and trial.slow_machine:
        return replace(gate, cause="machine", detail=_slowed(trial))
    interval = trial.boundary.interval(logs)
    cause, detail = _cause(trial, ended, interval, limit)
    if interval is not None:
        below = float(np.median(logs)) - interval[0]
        least = math.expm1(limit + below) if gate.name == "slowdown" else math.exp(limit + below)
        shown = _percent(least) if gate.name == "slowdown" else _ms(least)
        detail += f"; {shown} or more would have been seen"
    return replace(gate, cause=cause, detail=detail)


def _cause(
    trial: Trial, ended: Ended, interval: tuple[float, float] | None, limit: float
) -> tuple[Cause, str]:
    ran = trial.blocks.processes
    if interval is None:
        return "time limit", f"{ran} of at least {trial.boundary.fewest} processes ran in the time"
    width = interval[1] - interval[0]
    if (doubts := _disturbances(trial.blocks)) and ended != "verdict":
        return "doubts", doubts[0]
    if ended == "verdict":
        return "noise", "another gate had settled the check"
    if trial.limits.slowdown is not None and width < math.log1p(trial.limits.slowdown) / 2:
        return "margin", "the truth lies too close to the limit to be told from it"
    if ended == "time":
        return "time limit", f"after {ran} processes the interval still held the limit"
    return "noise", f"after {ran} processes the interval is still {math.expm1(width):.1%} wide"


def _slowed(trial: Trial) -> str:
    """How much slower the machine is than when the baseline was certified on it."""
    certified, now = trial.limits.certified_ms, float(np.median(trial.block_ms("baseline")))
    assert certified is not None
    beside = float(np.median(trial.as_certified_ms()))
    return (
        f"the baseline, certified at {ms(certified)} ms, takes {ms(now)} ms here now; beside it "
        f"the candidate is at {ms(beside)} ms. If it stays so: pipeline recertify"
    )


def _disturbances(blocks: BlockRun) -> list[str]:
    """What was wrong with the calls themselves, by engine."""
    pooled = {name: Samples.concatenate(of) for name, of in blocks.blocks.items()}
    return [f"{name}: {doubt}" for name, of in pooled.items() for doubt in disturbances_of(of)]


def _note(trial: Trial) -> str:
    """The slowdown so far, beside the progress bar."""
    if "baseline" not in trial.blocks.blocks:
        return f"{ms(float(np.median(trial.block_ms('candidate'))))} ms"
    return _percent(math.expm1(float(np.median(trial.log_ratios()))))


def _percent(share: float) -> str:
    """A signed share; that of a limit needs no sign."""
    return f"{100 * share:+.2f} %"


def _ms(value: float) -> str:
    return f"{ms(value)} ms"
