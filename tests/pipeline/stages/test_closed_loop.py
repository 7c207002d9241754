"""The closed loop: what it refuses before any training, and how it corrects its aim."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from calibration.counts import Count
from calibration.errors import CandidateLostError
from calibration.lpnet import LPNet
from calibration.several import Range
from calibration.widths import Plan, WidthVector
from pipeline.budget import Budget
from pipeline.errors import BudgetUnreachableError
from pipeline.options import PruneOptions, Share
from pipeline.pruning.select import Cost, Selector, priced
from pipeline.stages.closed_loop import AIMED, WASTEFUL, ClosedLoop, Limit
from pipeline.stages.rounds import SAFE
from pipeline.stages.solving import Solving

from ...calibration.chain import chain

SKELETON = chain((64, 96, 128))
MACS = Count.macs(SKELETON)
DENSE = MACS.at(SKELETON.groups.full())
ANCHOR_MS = 10.0


def predicted_ms(kept: torch.Tensor) -> torch.Tensor:
    """1 ms, and 9 ms by the multiply-adds."""
    return 1 + 9 * (MACS(kept) / DENSE).float()


def predicted_one_ms(widths: WidthVector) -> float:
    return float(predicted_ms(torch.tensor([widths.kept])))


def lpnet_of(spread: float) -> LPNet:
    """An LPNet that is known to be wrong by up to `spread`, nine times of ten."""
    found = SimpleNamespace(
        predict_ms=predicted_ms,
        predict_one_ms=predicted_one_ms,
        interval_ms=lambda kept: (predicted_ms(kept) / spread, predicted_ms(kept) * spread),
        held_out=SimpleNamespace(spread=spread),
        get_buffer=lambda name: torch.tensor(ANCHOR_MS),
    )
    return cast("LPNet", found)


class Bench:
    """A `Solving` whose runtime takes `factor` times what the LPNet predicts (or factor(ms))."""

    def __init__(
        self,
        factor: float | Callable[[float], float],
        spread: float = 1.02,
        half: float = 0.002,  # of the interval of a measured ratio
        pace: float = 1.0,  # what the dense network takes now, over what it took in calibrate
        **options: Any,
    ) -> None:
        self.factor = factor if callable(factor) else lambda ms: factor
        self.half, self.pace = half, pace
        self.options, self.skeleton = PruneOptions(**options), SKELETON
        self.target, self.lpnet = SimpleNamespace(channel_multiple=8), lpnet_of(spread)
        run = SimpleNamespace(event=lambda kind, **values: None)
        self.context = SimpleNamespace(
            run=run,
            reporter=SimpleNamespace(say=lambda text: None),
            remembered=lambda file, find: find(),
        )
        self.is_absolute = True
        self.allowed = 0.5  # ratio to the dense network
        self.learned: list[float] = []
        self.insisted: list[bool] = []  # of each plan that was to be measured
        # whether the plan for the aim is measured before any training, and whether it fits
        self.asks_plans = self.plan_fits = False
        self.scores = {g.name: torch.arange(g.channels).numpy() for g in SKELETON.groups.prunable}

    def learn(self, number: int, smooth: Any, cost: Any, aim: float, fits: Any) -> None:
        self.plan_fits = self.asks_plans and fits(self.propose(cost, aim))
        self.learned.append(aim)

    def propose(self, cost: Cost, aim: float, **without: Any) -> Plan:
        selector = Selector(SKELETON, priced(cost), 1, **without)
        return selector.choose(self.scores, SKELETON.groups.full().kept, aim)

    def measured(self, widths: WidthVector, between: Range | None, *, insist: bool) -> Any:
        self.insisted.append(insist)
        if self.is_absolute and len(self.insisted) == 1:
            assert between is None
        else:
            least = min(WASTEFUL, AIMED * (1 - self.options.margin))
            assert between == pytest.approx((least * self.allowed, SAFE * self.allowed))
        predicted = predicted_one_ms(widths)
        ratio = self.factor(predicted) * predicted / ANCHOR_MS
        ends = ((1 - self.half) * ratio, (1 + self.half) * ratio)
        dense_ms = self.pace * ANCHOR_MS
        if self.is_absolute:
            self.allowed = 5.0 / dense_ms
        return SimpleNamespace(ratio=ratio, ratio_ci95=ends, candidate_ms=ratio * dense_ms)


def loop_of(bench: Bench, budget_ms: float, budget: str = "5.0ms") -> ClosedLoop:
    limit = Limit(Budget.parse(budget), budget_ms, budget_ms)
    bench.is_absolute = limit.is_absolute
    return ClosedLoop(cast("Solving", bench), limit)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.08])
def test_a_plan_is_found_that_meets_the_budget_and_wastes_little(factor: float) -> None:
    rounds = loop_of(Bench(factor), 5.0).run()
    assert rounds[-1].met
    assert WASTEFUL * 5.0 <= rounds[-1].measured_ms <= 5.0
    assert len(rounds) <= 2  # one measurement tells by how much the LPNet is off
    assert (len(rounds) == 1) == (factor == 1.0)


@pytest.mark.parametrize("pace", [0.85, 1.2])
def test_milliseconds_are_those_that_plans_take_now(pace: float) -> None:
    """Not those of the dense network in calibrate, which the machine was faster or slower in."""
    loop = loop_of(Bench(1.0, pace=pace), 5.0)
    rounds = loop.run()
    taken = rounds[-1]
    assert taken.met
    assert taken.measured_ms == pytest.approx(taken.ratio * pace * ANCHOR_MS)
    assert WASTEFUL * 5.0 <= taken.measured_ms <= 5.0
    assert len(rounds) <= 3
    assert taken.fits(loop.least_ms)


@pytest.mark.parametrize(("budget", "pace"), [("5.0ms", 0.85), ("5.0ms", 1.2), ("0.5x", 1.2)])
def test_another_round_learns_at_the_pace_of_now(
    budget: str, pace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClosedLoop, "_refit", lambda *args: setattr(bench, "factor", lambda ms: 1))
    bench = Bench(9.0, pace=pace)
    assert loop_of(bench, 5.0, budget).run()[-1].met
    seen = pace if bench.is_absolute else 1.0
    aim = (1 - bench.options.margin) * 5.0
    assert bench.learned == pytest.approx([aim, aim / seen])


@pytest.mark.parametrize("pace", [0.85, 1.2])
def test_a_share_of_dense_is_one_at_any_pace(pace: float) -> None:
    rounds = loop_of(Bench(1.0, pace=pace), 5.0, "0.5x").run()
    assert [item.met for item in rounds] == [True]
    assert WASTEFUL * 0.5 <= rounds[0].ratio <= 0.5


def test_a_plan_that_keeps_a_wide_margin_is_measured_once() -> None:
    rounds = loop_of(Bench(1.003, margin=Share(0.1)), 5.0).run()
    assert [round(item.measured_ms / 5.0, 2) for item in rounds] == [0.9]


def test_a_latency_that_is_hardly_known_is_aimed_lower_at_once() -> None:
    loop = loop_of(Bench(1.0, half=0.03), 5.0)
    rounds = loop.run()
    assert [item.met for item in rounds] == [False, True]
    assert rounds[-1].ratio_ci95[1] * ANCHOR_MS == pytest.approx(0.99 * 5.0, rel=0.01)
    assert rounds[-1].fits(loop.least_ms)


def test_an_aim_that_proved_too_slow_is_not_followed_by_one_that_proved_wasteful() -> None:
    def misjudged(ms: float) -> float:
        """5 % faster than predicted at the first aim, 3 % slower where that is made up for."""
        return 0.95 + 0.08 * min(1.0, max(0.0, (ms - 4.9) / 0.37))

    loop = loop_of(Bench(misjudged, margin=Share(0.02)), 5.0)
    rounds = loop.run()
    shares = [item.measured_ms / 5.0 for item in rounds]
    assert [share < WASTEFUL for share in shares[:2]] == [True, False]
    assert not rounds[1].met
    assert rounds[-1].fits(loop.least_ms)
    assert len(rounds) == 3


class Unlucky(Bench):
    """The first plan seems slower than it is, and is hardly known."""

    def measured(self, widths: WidthVector, between: Range | None, *, insist: bool) -> Any:
        found = super().measured(widths, between, insist=insist)
        self.factor, self.half = (lambda ms: 0.96), 0.02
        return found


def test_a_plan_that_is_only_hardly_known_does_not_keep_the_next_ones_below_it() -> None:
    loop = loop_of(Unlucky(1.07, spread=1.1, half=0.09), 5.0)
    rounds = loop.run()
    first, second = rounds[:2]
    assert (first.met, first.slow) == (False, False)
    assert second.measured_ms < 0.9 * 5.0
    assert rounds[-1].predicted_ms > first.predicted_ms
    assert rounds[-1].fits(loop.least_ms)


class Coarse(Bench):
    """Only a few plans are to be had."""

    def propose(self, cost: Cost, aim: float, **without: Any) -> Plan:
        plans = [super(Coarse, self).propose(cost, ms) for ms in (4.4, 4.75, 4.85)]
        fitting = [plan for plan in plans if predicted_one_ms(plan.widths()) <= aim]
        return max(fitting, key=lambda plan: predicted_one_ms(plan.widths()))


def test_a_plan_between_two_that_were_measured_is_found() -> None:
    bench = Coarse(lambda ms: 1.06 if ms > 4.8 else 1.03 if ms > 4.6 else 1.0, spread=1.1)
    loop = loop_of(bench, 5.0)
    rounds = loop.run()
    shares = [item.measured_ms / 5.0 for item in rounds]
    assert shares == pytest.approx([0.88, 1.028, 0.978], abs=0.005)
    assert rounds[-1].fits(loop.least_ms)


def test_no_plan_is_measured_twice() -> None:
    bench = Coarse(lambda ms: 1.06 if ms > 4.6 else 1.0, spread=1.1)
    rounds = loop_of(bench, 5.0).run()
    assert [item.met for item in rounds] == [True, False, False]
    assert len({item.measured_ms for item in rounds}) == 3


class Leaping(Coarse):
    """No aim leads to plans between two, but there are some beside them that are worth as much."""

    def propose(self, cost: Cost, aim: float, **without: Any) -> Plan:
        if without:
            return Bench.propose(self, cost, aim, **without)
        return super().propose(cost, aim)


def test_a_plan_that_no_aim_leads_to_is_found() -> None:
    bench = Leaping(1.0, spread=1.1)
    slower = [predicted_one_ms(bench.propose(predicted_ms, aim).widths()) for aim in (4.8, 5.0)]
    bench.factor = lambda ms: 1.06 if ms in slower else 1.0
    loop = loop_of(bench, 5.0)
    rounds = loop.run()
    assert [item.fits(loop.least_ms) for item in rounds] == [False] * 3 + [True]
    assert len({item.plan.widths() for item in rounds}) == 4


@pytest.mark.parametrize("factor", [0.93, 1.0, 1.09])
def test_first_plan_leaves_room_for_what_the_lpnet_is_known_to_err_by(factor: float) -> None:
    bench = Bench(factor, spread=1.1)
    rounds = loop_of(bench, 5.0).run()
    assert rounds[0].predicted_ms == pytest.approx(5.0 / 1.1, rel=0.01)
    assert rounds[0].met
    assert rounds[-1].met
    assert WASTEFUL * 5.0 <= rounds[-1].measured_ms <= 5.0
    # gates learn for the plan that is wished for
    assert bench.learned == [(1 - bench.options.margin) * 5.0]


@pytest.mark.parametrize("factor", [0.7, 0.93, 1.0, 1.09])
def test_a_plan_that_is_known_to_fit_leaves_no_such_room(factor: float) -> None:
    bench = Bench(factor, spread=1.1)
    bench.asks_plans = True
    rounds = loop_of(bench, 5.0).run()
    assert bench.plan_fits, "plans are chosen for an aim that was corrected"
    assert bench.learned == pytest.approx([4.925 / factor], rel=0.01)
    assert rounds[0].predicted_ms == pytest.approx(4.925, rel=0.01)
    assert len(rounds) == 1
    assert bench.insisted[-1:] == [True], "only a plan that may be taken is worth a second timing"
    assert not any(bench.insisted[:-1])


def test_where_no_plan_was_found_to_fit_room_is_left_and_the_bias_counts() -> None:
    bench = Bench(0.93, spread=1.1, half=0.03)
    bench.asks_plans = True
    rounds = loop_of(bench, 5.0).run()
    assert not bench.plan_fits
    assert rounds[0].predicted_ms == pytest.approx(5.0 / 1.1, rel=0.01)
    assert rounds[0].measured_ms == pytest.approx(rounds[0].predicted_ms, rel=0.01)


class Hanging(Bench):
    """What is asked before any training cannot be measured."""

    hangs = True

    def learn(self, *args: Any) -> None:
        super().learn(*args)
        self.hangs = False

    def measured(self, widths: WidthVector, between: Range | None, *, insist: bool) -> Any:
        if self.hangs:
            raise CandidateLostError("it hung", fix="try another")
        return super().measured(widths, between, insist=insist)


def test_a_plan_that_cannot_be_measured_does_not_fit() -> None:
    bench = Hanging(1.0)
    bench.asks_plans = True
    assert loop_of(bench, 5.0).run()[-1].met
    assert not bench.plan_fits


def test_least_widths_that_are_too_slow_stop_before_any_training() -> None:
    bench = Bench(1.0, min_width=Share(0.9))
    with pytest.raises(BudgetUnreachableError, match="with --min-width 0.9") as caught:
        loop_of(bench, 5.0).run()
    assert "lower --min-width" in str(caught.value.fix)
    assert not bench.learned
    assert loop_of(Bench(1.0, min_width=Share(0.3)), 5.0).run()[-1].met
