"""The verdict: a rule over blocks, tried on blocks whose latencies are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.budget import Budget
from pipeline.errors import ParityError
from pipeline.judging import FEWEST_PROCESSES, Judge, wilson_ci95
from pipeline.options import PruneOptions
from pipeline.stages.answers import Answers, _Parity
from pipeline.stages.verify import _checked_parity, _judge, _together
from targets import load_target
from targets.base import TargetOptions
from targets.blocks import BlockRun
from targets.samples import Samples

FINGERPRINT = load_target("fake", TargetOptions()).fingerprint()


def block(ms: Sequence[float]) -> Samples:
    ns = (np.array(ms) * 1e6).astype(np.int64)
    return Samples(ns, ns, np.zeros(len(ns), np.int64))


def blocks(engine: Sequence[Sequence[float]], dense: Sequence[Sequence[float]]) -> BlockRun:
    """One list of call latencies in ms for each process."""
    return BlockRun(
        FINGERPRINT,
        {"engine": tuple(map(block, engine)), "dense": tuple(map(block, dense))},
    )


def steady(engine_ms: Sequence[float], dense_ms: Sequence[float]) -> BlockRun:
    return blocks([[ms] * 20 for ms in engine_ms], [[ms] * 20 for ms in dense_ms])


def judge(budget: str, percentile: int = 50) -> Judge:
    return Judge(Budget.parse(budget), percentile)


SIX = np.linspace(0.99, 1.01, 6)


@pytest.mark.parametrize(
    ("budget", "verdict"),
    [
        ("4.1ms", "met"),
        ("3.9ms", "missed"),
        ("4.0ms", "inconclusive"),
        ("0.51x", "met"),
        ("0.49x", "missed"),
    ],
)
def test_verdict_compares_the_interval_with_the_budget(budget: str, verdict: str) -> None:
    assert judge(budget).verdict(steady(4 * SIX, 8 * SIX)) == verdict


SIZES = {"macs": {"dense": 200, "pruned": 100}, "params": {"dense": 90, "pruned": 60}}


@pytest.mark.parametrize(
    ("objective", "budget", "verdict", "most"),
    [
        ("flops", "0.5x", "met", 100),
        ("flops", "0.49x", "missed", 98),
        ("flops", "0.1k", "met", 100),
        ("params", "0.67x", "met", 60),
        ("params", "0.66x", "missed", 59),
    ],
)
def test_a_count_is_judged_exactly_whatever_the_clock_says(
    objective: Any, budget: str, verdict: str, most: int
) -> None:
    found, stated = _judge(PruneOptions(objective=objective, budget=budget), SIZES)
    for blocks in (steady(9 * SIX, 8 * SIX), steady(4 * SIX[:1], 8 * SIX[:1])):
        assert found.verdict(blocks) == verdict
    assert stated == {"objective": objective, "budget_count": most}


def test_a_latency_is_judged_by_the_clock() -> None:
    found, stated = _judge(PruneOptions(budget="3.9ms", percentile="p99"), SIZES)
    assert found == judge("3.9ms", 99)
    assert stated == {"objective": "latency", "budget_count": None}


def test_relative_verdict_is_paired_so_that_drift_cancels() -> None:
    drift = np.linspace(0.7, 1.5, 8)
    run = steady(4 * drift, 8 * drift)
    assert judge("0.51x").verdict(run) == "met"
    assert judge("0.49x").verdict(run) == "missed"
    assert judge("4.1ms").verdict(run) == "inconclusive"


def test_too_few_processes_give_no_verdict() -> None:
    few = steady([4.0] * (FEWEST_PROCESSES - 1), [8.0] * (FEWEST_PROCESSES - 1))
    assert judge("7ms").verdict(few) == "inconclusive"
    enough = steady([4.0] * FEWEST_PROCESSES, [8.0] * FEWEST_PROCESSES)
    assert judge("7ms").verdict(enough) == "met"


def test_percentile_is_the_one_of_the_budget() -> None:
    with_tail = [[4.0] * 54 + [9.0] * 6] * 6
    run = blocks(with_tail, [[10.0] * 60] * 6)
    assert judge("5ms", 50).verdict(run) == "met"
    assert judge("5ms", 99).verdict(run) == "missed"
    assert judge("0.5x", 50).verdict(run) == "met"
    assert judge("0.5x", 99).verdict(run) == "missed"


@pytest.mark.parametrize(("budget", "tail"), [("25ms", 30.0), ("0.25x", 0.3)])
def test_a_tail_that_is_rarer_than_one_call_a_block_still_counts(budget: str, tail: float) -> None:
    # 3 % of the calls are slow: of 15 calls a block, most blocks have none
    slow = np.random.default_rng(0).random((30, 15)) < 0.03
    run = blocks(np.where(slow, 30.0, 20.0).tolist(), [[100.0] * 15] * 30)
    assert judge(budget, 99).verdict(run) == "missed"
    assert judge(budget, 99).interval(run) == pytest.approx((tail, tail))


def test_looking_often_adds_no_false_verdicts() -> None:
    """Of engines that take exactly the budget, one in 20 may get a verdict, whichever."""
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal((60, 24)))
    asked, verdicts = judge("0.5x"), {0.95: 0, 0.999: 0}
    for drawn in noise:
        looks = [steady(4 * drawn[:count], [8.0] * count) for count in (10, 13, 16, 19, 22)]
        last = asked.verdict(steady(4 * drawn, [8.0] * 24))
        for early in verdicts:
            found = {asked.verdict(run, early) for run in looks} | {last}
            verdicts[early] += found != {"inconclusive"}
    assert verdicts[0.999] <= 4
    assert verdicts[0.95] > 4, "else nothing is tried here"


def test_what_is_clear_at_the_end_need_not_be_clear_early() -> None:
    run = steady(4 * np.linspace(0.99, 1.01, 10), [8.0] * 10)
    assert judge("0.51x").is_clear_early(run)
    assert judge("0.49x").is_clear_early(run)
    _, high = judge("0.5x").interval(run)
    near = judge(f"{1.0005 * high:.6f}x")
    assert near.verdict(run) == "met"
    assert not near.is_clear_early(run)


def test_what_was_measured_elsewhere_does_not_count() -> None:
    before, latest = steady(4 * SIX, 8 * SIX), steady(4 * SIX[:2], 8 * SIX[:2])
    assert _together(before, latest).processes == 8
    assert _together(None, latest) is latest
    moved = replace(latest, fingerprint=replace(FINGERPRINT, threads=FINGERPRINT.threads + 1))
    assert _together(before, moved) is moved


def test_too_few_calls_for_a_tail_give_no_verdict_and_say_so() -> None:
    run = steady(4 * SIX, 8 * SIX)  # 120 calls each
    assert judge("7ms", 90).verdict(run) == "met"
    assert judge("7ms", 99).verdict(run) == "inconclusive"
    told = judge("0.6x", 99).doubts(run)
    assert "engine: p99 needs 299 calls, there are 120: raise --block-seconds" in told
    assert "dense: p99 needs 299 calls, there are 120: raise --block-seconds" in told
    assert len(judge("7ms", 99).doubts(run)) == 1


def test_calls_that_were_preempted_do_not_count() -> None:
    ns = np.array([4_000_000] * 60 + [90_000_000] * 20)
    disturbed = Samples(ns, ns, (ns > 5_000_000).astype(np.int64))
    dense = tuple(block([8.0] * 20) for _ in range(6))
    run = BlockRun(FINGERPRINT, {"engine": (disturbed,) * 6, "dense": dense})
    assert judge("4.1ms", 99).verdict(run) == "met"


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [
        # Newcombe 1998, table I, method 3
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0.0, 20, 0.0, 0.1611),
        (1.0, 29, 0.8830, 1.0),
    ],
)
def test_wilson_interval(share: float, n: int, low: float, high: float) -> None:
    assert wilson_ci95(share, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("ours", ["torch", "engine"])
def test_logits_that_are_not_finite_are_refused_and_not_forgotten(number: float, ours: str) -> None:
    fine = np.ones((2, 3), np.float32)
    bad = np.array([[1, number, 1], [1, 1, 1]], np.float32)
    parity = _Parity()
    parity.add(fine, fine)
    parity.add(*((bad, fine) if ours == "torch" else (fine, bad)))
    parity.add(fine, fine)
    labels = np.zeros(6, np.int64)
    found = Answers({"finetuned": labels, "engine": labels}, labels, parity.worst, parity.largest)
    with pytest.raises(ParityError, match="not finite"):
        _checked_parity(found, None, "fp32")


def test_a_network_that_says_nothing_but_nought_has_parity() -> None:
    labels = np.zeros(2, np.int64)
    found = Answers({"finetuned": labels, "engine": labels}, labels, 0.0, 0.0)
    assert _checked_parity(found, None, "fp32")["max_rel"] == 0
