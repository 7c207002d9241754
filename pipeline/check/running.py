"""One check from files to result, and the calibration of a runner."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.budget import Budget
from pipeline.check.boundary import Boundary
from pipeline.check.history import Entry, accepted_level, read_history, step_notes
from pipeline.check.latency import Effort, Limits, Told, Trial, gates_of, measure
from pipeline.check.noise import (
    NoiseFloor,
    floor_key,
    read_floors,
    settled_margin,
    store_floor,
)
from pipeline.check.options import CheckOptions
from pipeline.check.parity import check_parity
from pipeline.check.result import CheckResult, Gate, Subject
from pipeline.check.sides import BuildWish, Side, Sides, image_size_of, open_sides
from pipeline.errors import BundleError, DeployError, InconclusiveError
from pipeline.hanging import Watch
from pipeline.recheck import stated
from targets.blocks import BlockRun
from targets.fingerprint import Fingerprint

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99}

if TYPE_CHECKING:
    from pipeline.data.base import ImageData


@dataclass(frozen=True)
class Request:
    """What the user asks for."""

    candidate: Path
    baseline: Path | None
    options: CheckOptions
    noise: Path
    history: Path | None = None
    accept: str = ""

    @property
    def effort(self) -> Effort:
        options = self.options
        return Effort(options.processes, options.block_seconds, 60 * options.time)


def check(request: Request, told: Told) -> tuple[CheckResult, BlockRun]:
    """Parity, then latency, then accuracy: what fails at once is not timed first.

    Returns the result, and every timed call behind it.
    """
    past = read_history(request.history)
    with tempfile.TemporaryDirectory() as folder:
        data = _data(request)
        sides = _sides(request, data, Path(folder))
        here = sides.target.fingerprint()
        parity, notes = check_parity(sides, request.options.parity)
        limits, further = _limits(request, past, sides, here)
        boundary = Boundary.of(request.options.processes)
        trial, ended, seconds = measure(sides, limits, boundary, request.effort, told)
        gates = (*gates_of(trial, ended), *parity, *_accuracy(request, sides, data))
    result = _result(sides, trial, seconds, gates, (*notes, *further, *_moved(sides, here)))
    return _remembered(result, request, past), trial.blocks


def calibrate(request: Request, told: Told) -> tuple[NoiseFloor, Fingerprint]:
    """Time the candidate against itself and keep what that says about this runner."""
    boundary = Boundary.of(request.options.processes)
    with tempfile.TemporaryDirectory() as folder:
        alone = _sides(request, _data(request), Path(folder))
        twice = replace(alone, baseline=alone.candidate)
        limits = Limits(percentile=_percentile(request, twice))
        trial, _, seconds = measure(twice, limits, boundary, request.effort, told)
    processes = trial.blocks.processes
    if processes < boundary.fewest:
        raise InconclusiveError(
            f"{processes} of at least {boundary.fewest} processes ran in the time",
            fix="raise --time, or lower --block-seconds",
        )
    floor = NoiseFloor.of(
        trial.log_ratios(),
        boundary,
        at=_now(),
        engine=twice.candidate.name,
        percentile=f"p{limits.percentile}",
        seconds_per_process=seconds / processes,
    )
    key = floor_key(trial.blocks.fingerprint.digest(), limits.percentile)
    store_floor(request.noise, key, floor)
    return floor, trial.blocks.fingerprint


def _data(request: Request) -> ImageData | None:
    if request.options.data is None:
        return None
    from pipeline.check.accuracy import open_data  # torch

    return open_data(request.options.data, image_size_of(request.candidate))


def _sides(request: Request, data: ImageData | None, folder: Path) -> Sides:
    batches: tuple[Any, ...] = ()
    if data is not None:
        from pipeline.check.accuracy import range_batches

        batches = range_batches(data)
    options = request.options

    def clear(reason: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    watch = Watch(60 * options.watchdog, before_the_end=clear)
    wish = BuildWish(options.target, options.threads, folder, batches, watch)
    return open_sides(request.candidate, request.baseline, wish)


def _accuracy(request: Request, sides: Sides, data: ImageData | None) -> tuple[Gate, ...]:
    if data is None:
        return ()
    from pipeline.check.accuracy import check_accuracy

    return (check_accuracy(sides, data, request.options.accuracy_loss),)


def _limits(
    request: Request, past: Sequence[Entry], sides: Sides, here: Fingerprint
) -> tuple[Limits, tuple[str, ...]]:
    """What the latency may be, and notes on how that came about."""
    percentile = _percentile(request, sides)
    budget_ms, notes = _budget_ms(request, sides.candidate, here, percentile)
    slowdown = certified_ms = None
    if sides.baseline is not None:
        floor = read_floors(request.noise).get(floor_key(here.digest(), percentile))
        margin, raised = settled_margin(request.options.margin, floor)
        series = (sides.baseline.sha256, here.digest(), f"p{percentile}")
        accepted, told = accepted_level(past, series)
        slowdown = (1 + accepted) * (1 + margin) - 1
        notes = (*notes, *filter(None, (raised, told)))
        certified_ms = _certified_ms(sides.baseline, here, percentile)
    elif budget_ms is None:
        raise DeployError(
            "there is nothing to hold the candidate against", fix="give --against or --budget"
        )
    return Limits(slowdown, budget_ms, percentile, certified_ms), notes


def _certified_ms(side: Side, here: Fingerprint, percentile: int) -> float | None:
    """What a bundle's certificate says that it takes on this very set-up, if it does."""
    if side.certificate is None or side.certified_elsewhere(here):
        return None
    try:
        return stated(side.certificate, "latency_ms", "engine", f"p{percentile}")
    except BundleError:  # a tail is certified only where the calls were enough
        return None


def _percentile(request: Request, sides: Sides) -> int:
    certificate = sides.candidate.certificate or {}
    asked = request.options.percentile or certificate.get("percentile", "p50")
    if not isinstance(asked, str) or asked not in PERCENTILES:
        raise BundleError("the certificate's percentile is none", fix="give --percentile")
    return PERCENTILES[asked]


def _budget_ms(
    request: Request, candidate: Side, here: Fingerprint, percentile: int
) -> tuple[float | None, tuple[str, ...]]:
    """The budget asked for, or the certificate's where it means something on this machine."""
    if request.options.budget is not None:
        budget = Budget.parse(request.options.budget)
        if budget.unit != "ms":
            raise DeployError(f"the budget {budget} is no latency", fix="write it as 4.0ms")
        return budget.value, ()
    stated = _stated_budget(candidate.certificate or {})
    if stated is None:
        return None, ()
    budget, budget_ms = stated
    own = (candidate.certificate or {}).get("percentile", "p50")
    if own != f"p{percentile}":
        return None, (f"the bundle's budget, {budget}, is one of its {own}, and not judged here",)
    if budget.unit == "ms":
        return budget_ms, (f"the budget is the bundle's own, {budget}",)
    if candidate.certified_elsewhere(here):
        return None, (f"the bundle's budget, {budget} of dense, was settled on another set-up",)
    return budget_ms, (f"the budget is the bundle's own, {budget} of dense",)


def _stated_budget(certificate: Mapping[str, Any]) -> tuple[Budget, float] | None:
    """The budget of a certificate that is one of latency, and what it came to in ms."""
    budget_ms = certificate.get("budget_ms")
    if budget_ms is None:
        return None
    try:
        budget = Budget.parse(str(certificate.get("budget")))
    except ValueError as error:
        raise BundleError(f"the certificate's budget: {error}", fix="give --budget") from error
    if type(budget_ms) not in (int, float) or not 0 < budget_ms < math.inf:
        raise BundleError("the certificate's budget_ms is no latency", fix="give --budget")
    return budget, float(budget_ms)


def _moved(sides: Sides, here: Fingerprint) -> tuple[str, ...]:
    """Where a bundle's certificate was measured elsewhere: its latencies are not used."""
    named = {"candidate": sides.candidate, "baseline": sides.baseline}
    return tuple(
        f"{name}: measured here anew, certified on another set-up ({'; '.join(differences)})"
        for name, side in named.items()
        if side is not None and (differences := side.certified_elsewhere(here))
    )


def _result(
    sides: Sides,
    trial: Trial,
    seconds: float,
    gates: tuple[Gate, ...],
    notes: tuple[str, ...],
) -> CheckResult:
    def subject(name: str, side: Side) -> Subject:
        return Subject(side.name, side.sha256, trial.latency(name))

    fingerprint = trial.blocks.fingerprint
    return CheckResult(
        at=_now(),
        target=sides.target.name,
        fingerprint=fingerprint.to_json(),
        fingerprint_sha256=fingerprint.digest(),
        percentile=f"p{trial.limits.percentile}",
        confidence=trial.boundary.confidence,
        processes=trial.blocks.processes,
        seconds=seconds,
        candidate=subject("candidate", sides.candidate),
        baseline=None if sides.baseline is None else subject("baseline", sides.baseline),
        gates=gates,
        doubts=trial.blocks.doubts(),
        notes=notes,
    )


def _remembered(result: CheckResult, request: Request, past: Sequence[Entry]) -> CheckResult:
    """The same result, accepted if the user says so, with what the history adds."""
    gate = result.gate("slowdown")
    notes = list(result.notes)
    accepted = ""
    if request.accept:
        if gate is not None and gate.verdict == "regression":
            accepted = request.accept
        else:
            notes.append("there was no slowdown to accept")
    entry = Entry.of(replace(result, accepted=accepted))
    if request.history is not None:
        notes += step_notes([*past, entry])
    return replace(result, accepted=accepted, notes=tuple(notes))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
