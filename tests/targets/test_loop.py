from __future__ import annotations

import gc

import numpy as np
import pytest

from targets.loop import time_calls

from .conftest import FakeClock, ScriptedEngine

MS = 1_000_000


def test_each_call_is_timed_in_order(clock: FakeClock) -> None:
    engine = ScriptedEngine("e", clock, [], duration_ns=lambda call: (call + 1) * MS)
    timed = time_calls(engine.call, 4)
    assert timed.ms.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert timed.cpu_ns.tolist() == timed.wall_ns.tolist()


def test_a_preempted_call_is_flagged_and_only_that(clock: FakeClock) -> None:
    def duration_ns(call: int) -> int:
        clock.switches += 2 if call == 1 else 0
        return MS

    timed = time_calls(ScriptedEngine("e", clock, [], duration_ns=duration_ns).call, 3)
    assert timed.involuntary_switches.tolist() == [0, 2, 0]


def test_calls_are_marked_in_slices_in_which_cpu_time_was_withheld(clock: FakeClock) -> None:
    def duration_ns(call: int) -> int:
        clock.steal_ticks += call == 10
        clock.throttled_us += 300 * (call == 40)
        return MS

    timed = time_calls(ScriptedEngine("e", clock, [], duration_ns=duration_ns).call, 50)
    assert timed.withheld is not None
    # slices: 8 calls, then 10 ms each
    marked = [*range(8, 18), *range(38, 48)]
    assert np.flatnonzero(timed.withheld).tolist() == marked
    assert np.flatnonzero(~timed.clean).tolist() == marked
    assert (timed.steal_ticks, timed.throttled_us) == (1, 300)
    assert time_calls(lambda: None, 3).clean.all()


def test_a_raising_call_propagates_and_restores_garbage_collection() -> None:
    seen: list[bool] = []

    def call() -> None:
        seen.append(gc.isenabled())
        raise RuntimeError("the device is gone")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="the device is gone"):
        time_calls(call, 5)
    assert seen == [False]
    assert gc.isenabled()


def test_nothing_cannot_be_timed() -> None:
    with pytest.raises(ValueError, match="not 0"):
        time_calls(lambda: None, 0)


def test_real_clocks_agree_with_the_work_done() -> None:
    timed = time_calls(lambda: sum(range(20_000)), 5)
    assert (timed.wall_ns > 0).all()
    assert (timed.cpu_ns > 0).all()
