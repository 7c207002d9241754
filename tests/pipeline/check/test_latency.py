"""Verdicts by interval, when measuring stops, and why a check is inconclusive."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.check import latency
from pipeline.check.boundary import Boundary
from pipeline.check.latency import Effort, Limits, Trial, gates_of, measure, side_of
from pipeline.check.sides import Side, Sides
from pipeline.errors import FingerprintError, InconclusiveError
from targets import load_target
from targets.base import TargetOptions
from targets.blocks import BlockRun
from targets.samples import Samples

from .conftest import FINGERPRINT, block, blocks_of, noisy

BOUNDARY = Boundary.of(40)
EFFORT = Effort(processes=40, block_seconds=0.1, seconds=1e6)
Script = Callable[[Iterable[float]], list[str]]


class Quiet:
    def progress(self, label: str, done: int, total: int, note: str = "") -> None:
        assert done <= total


def sides() -> Sides:
    side = Side("x.onnx", "0" * 64, Path("x"), None)
    return Sides(load_target("fake", TargetOptions(batch=2, threads=1)), side, side)


def trial(ratios: list[float], **limits: Any) -> Trial:
    return Trial(blocks_of(ratios), Limits(**limits), BOUNDARY)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (None, "inconclusive"),
        ((0.0, 0.9), "pass"),
        ((1.1, 2.0), "regression"),
        ((0.9, 1.1), "inconclusive"),
        ((0.5, 1.0), "inconclusive"),
        ((1.0, 1.5), "inconclusive"),
    ],
)
def test_an_interval_that_holds_the_limit_decides_nothing(
    interval: tuple[float, float] | None, verdict: str
) -> None:
    assert side_of(interval, 1.0) == verdict


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.0, "pass"), (0.8, "pass"), (1.05, "regression"), (2.0, "regression")]
)
def test_clear_cases_end_at_the_first_look(measured: Script, ratio: float, verdict: str) -> None:
    measured(noisy(ratio, 0.003))
    found, ended, _ = measure(sides(), Limits(slowdown=0.025), BOUNDARY, EFFORT, Quiet())
    assert found.verdicts() == {"slowdown": verdict}
    assert (ended, found.blocks.processes) == ("verdict", BOUNDARY.fewest)


def test_noise_takes_more_processes_and_then_ends_without_a_verdict(measured: Script) -> None:
    measured(noisy(1.0, 0.02))
    found, ended, _ = measure(sides(), Limits(slowdown=0.025), BOUNDARY, EFFORT, Quiet())
    assert ended == "verdict"
    assert found.blocks.processes > BOUNDARY.fewest
    measured(noisy(1.0, 0.15))
    found, ended, _ = measure(sides(), Limits(slowdown=0.025), BOUNDARY, EFFORT, Quiet())
    assert ended == "processes"
    (gate,) = gates_of(found, ended)
    assert (gate.verdict, gate.cause) == ("inconclusive", "noise")
    assert "would have been seen" in gate.detail


def test_what_could_have_been_seen_would_have_been() -> None:
    ratios = noisy(1.0, 0.1, n=40)
    (gate,) = gates_of(trial(ratios, slowdown=0.025), "processes")
    assert gate.verdict == "inconclusive"
    least = float(gate.detail.rpartition("; ")[2].split(" %")[0]) / 100
    slower = [ratio / np.median(ratios) * (1 + least + 0.001) for ratio in ratios]
    faster = [ratio / np.median(ratios) * (1 + least - 0.001) for ratio in ratios]
    assert trial(slower, slowdown=0.025).verdicts() == {"slowdown": "regression"}
    assert trial(faster, slowdown=0.025).verdicts() == {"slowdown": "inconclusive"}


def test_time_ends_a_check(measured: Script) -> None:
    measured(noisy(1.0, 0.003))
    short = dataclasses.replace(EFFORT, seconds=0.0)
    found, ended, _ = measure(sides(), Limits(slowdown=0.025), BOUNDARY, short, Quiet())
    assert (ended, found.blocks.processes) == ("time", 1)
    (gate,) = gates_of(found, ended)
    assert gate.cause == "time limit"
    assert gate.detail == f"1 of at least {BOUNDARY.fewest} processes ran in the time"


def test_no_process_is_begun_that_would_outlast_the_time(
    measured: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(1000))
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)))
    monkeypatch.setattr(latency, "time", clock)
    measured(noisy(1.0, 0.3))
    found, ended, _ = measure(
        sides(), Limits(slowdown=0.02), BOUNDARY, dataclasses.replace(EFFORT, seconds=15.5), Quiet()
    )
    assert (ended, found.blocks.processes) == ("time", 15)


def test_a_slowdown_at_the_limit_says_so() -> None:
    (gate,) = gates_of(trial(noisy(1.025, 0.002, n=40), slowdown=0.025), "processes")
    assert (gate.verdict, gate.cause) == ("inconclusive", "margin")


def test_disturbed_calls_are_the_cause_where_there_are_some() -> None:
    run = blocks_of(noisy(1.0, 0.15, n=40))
    disturbed = tuple(
        Samples(s.wall_ns, s.cpu_ns, s.involuntary_switches, throttled_us=9000)
        for s in run.blocks["candidate"]
    )
    run = BlockRun(FINGERPRINT, {**run.blocks, "candidate": disturbed})
    (gate,) = gates_of(Trial(run, Limits(slowdown=0.025), BOUNDARY), "processes")
    assert gate.cause == "doubts"
    assert "quota held the process back" in gate.detail


def test_budget_is_judged_in_ms_beside_the_slowdown() -> None:
    found = trial(noisy(1.0, 0.003, n=20), slowdown=0.025, budget_ms=1.5)
    assert found.verdicts() == {"slowdown": "pass", "budget": "regression"}
    slowdown, budget = gates_of(found, "verdict")
    assert (slowdown.name, budget.name) == ("slowdown", "budget")
    assert budget.limit == "at most 1.5 ms"
    assert budget.value == pytest.approx(2.0, rel=0.01)


# blocks of `blocks_of` take 2 ms times the ratio, those of the baseline 2 ms
@pytest.mark.parametrize(
    ("ratio", "certified_ms", "verdict", "cause"),
    [
        (1.0, 1.4, "inconclusive", "machine"),  # at 1.4 ms beside its baseline, which is slower now
        (1.0, 1.6, "regression", ""),  # over the budget beside the certified baseline, too
        (1.1, 1.4, "regression", ""),  # slower than its baseline, and so over the budget
        (0.7, 1.4, "pass", ""),  # within it by the clock, whatever the machine does
        (1.0, None, "regression", ""),  # nothing was certified here
    ],
)
def test_a_slower_machine_is_not_blamed_on_the_candidate(
    ratio: float, certified_ms: float | None, verdict: str, cause: str
) -> None:
    found = trial(noisy(ratio, 0.003, n=20), slowdown=0.2, budget_ms=1.5, certified_ms=certified_ms)
    assert found.verdicts() == {"slowdown": "pass", "budget": verdict}
    assert found.is_decided
    budget = gates_of(found, "verdict")[1]
    assert (budget.verdict, budget.cause) == (verdict, cause)
    if cause:
        assert budget.detail.startswith("the baseline, certified at 1.400 ms, takes 2.000 ms here")
        assert "beside it the candidate is at 1.399 ms. If it stays so: pipeline" in budget.detail


def test_a_slower_machine_whose_effect_is_unclear_is_measured_on() -> None:
    found = trial(noisy(1.0, 0.003, n=20), slowdown=0.2, budget_ms=1.5, certified_ms=1.5)
    assert found.slow_machine
    assert not found.is_decided


def test_a_regression_ends_the_check_though_another_gate_is_open() -> None:
    found = trial(noisy(1.2, 0.003, n=12), slowdown=0.025, budget_ms=2.4)
    assert found.is_decided
    (open_gate,) = (gate for gate in gates_of(found, "verdict") if gate.name == "budget")
    if open_gate.verdict == "inconclusive":
        assert open_gate.detail.startswith("another gate had settled")


def test_without_limits_nothing_is_ever_decided() -> None:
    assert not trial(noisy(1.0, 0.001, n=40)).is_decided


def test_a_ratio_of_medians_is_one_of_low_quantiles() -> None:
    base = block(2.0, calls=100)
    delayed = base.wall_ns + np.where(np.arange(100) % 5 < 3, 10**7, 0)  # 60 of 100 calls
    hit = Samples(delayed, delayed, np.zeros(100, np.int64))
    run = BlockRun(FINGERPRINT, {"candidate": (hit,), "baseline": (base,)})
    assert abs(Trial(run, Limits(slowdown=0.025), BOUNDARY).log_ratios()[0]) < 0.01
    assert Trial(run, Limits(), BOUNDARY).block_ms("candidate")[0] > 10
    assert Trial(run, Limits(percentile=90), BOUNDARY).log_ratios()[0] > 1


def test_percentiles_need_calls_enough() -> None:
    with pytest.raises(InconclusiveError, match="p99 needs 299 samples") as error:
        trial([1.0], percentile=99).block_ms("candidate")
    assert "--block-seconds" in error.value.fix


def test_a_machine_that_changes_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(*_: Any, **__: Any) -> BlockRun:
        raise FingerprintError("clocks: a != b")

    monkeypatch.setattr(latency, "measure_blocks", changed)
    with pytest.raises(InconclusiveError, match="the machine changed while it measured: clocks"):
        measure(sides(), Limits(slowdown=0.02), BOUNDARY, EFFORT, Quiet())
