from __future__ import annotations

import math

import numpy as np
import pytest

from targets.fingerprint import cpu_fingerprint
from targets.samples import Samples
from targets.timing import Measurement, compare, measure, warm_up

from .conftest import FakeClock, ScriptedEngine

MS = 1_000_000


def samples_of(wall_ms: list[float], switches: list[int] | None = None) -> Samples:
    """Samples with these wall times; undisturbed unless `switches` says otherwise."""
    wall_ns = np.array([round(ms * MS) for ms in wall_ms], dtype=np.int64)
    return Samples(wall_ns, wall_ns, np.array(switches or [0] * len(wall_ms), dtype=np.int64))


def steady(name: str, clock: FakeClock, log: list[str], ms: float) -> ScriptedEngine:
    return ScriptedEngine(name, clock, log, duration_ns=lambda _: round(ms * MS))


# one engine


def test_a_measurement_refuses_p99_by_its_clean_calls() -> None:
    fingerprint = cpu_fingerprint("t", "fp32", runtime="r", batch=1, threads=1, settings=())
    samples = samples_of([2.0] * 298 + [50.0], [0] * 298 + [1])
    measurement = Measurement(samples, warmup_calls=3, batch=1, fingerprint=fingerprint)
    with pytest.raises(ValueError, match="there are 298"):
        measurement.percentile_ms(99)
    assert measurement.percentile_ms(90) == 2.0
    assert measurement.median_ms() == 2.0
    assert measurement.doubts() == ()
    short = Measurement(samples_of([2.0]), warmup_calls=3, batch=1, fingerprint=fingerprint)
    assert short.doubts() == ("only 1 calls were timed",)


# warm-up


def test_warm_up_ends_when_two_windows_agree(clock: FakeClock) -> None:
    # calls get faster until the 11th: 1 + 1 to size the windows (5 calls of about 1 ms) ...
    engine = ScriptedEngine(
        "e", clock, [], duration_ns=lambda call: MS if call >= 10 else 2 * MS - call * MS // 20
    )
    calls = warm_up(engine)
    assert calls == engine.calls
    assert engine.calls >= 10 + 3  # ... then at least one window that is warm throughout


def test_warm_up_of_a_steady_engine_takes_two_windows(clock: FakeClock) -> None:
    assert warm_up(steady("e", clock, [], 1.0)) == 2 + 2 * 5


def test_warm_up_gives_up_at_its_limits(clock: FakeClock) -> None:
    growing = ScriptedEngine("e", clock, [], duration_ns=lambda call: round(MS * 1.1**call))
    warm_up(growing, limit_s=0.1)
    assert clock.now_ns < 0.5e9
    restless = ScriptedEngine("e", clock, [], duration_ns=lambda call: MS * (1 + call // 5 % 2))
    assert warm_up(restless, limit_s=1e9) <= 2 + 50 * 5


# comparison


def test_rounds_alternate_who_goes_first(clock: FakeClock) -> None:
    log: list[str] = []
    found = compare(steady("A", clock, log, 1.0), steady("B", clock, log, 2.0), rounds=6, calls=3)
    rounds = log[-3 * len(found.round_ratios) :]
    assert "".join(rounds) == "ABABABABABABABABAB"  # B has twice the calls in ABA, A in BAB
    assert len(found.candidate) == len(found.anchor) == 2 * 3 * len(found.round_ratios)


def test_the_ratio_of_steady_engines_is_exact_and_stops_early(clock: FakeClock) -> None:
    found = compare(steady("A", clock, [], 1.0), steady("B", clock, [], 2.0))
    assert found.ratio == 0.5
    assert found.ratio_ci95 == pytest.approx((0.4975, 0.5025))  # what no round can tell
    assert found.calls_per_round == 16  # in two turns, as many as refill the caches
    assert len(found.round_ratios) == 6
    assert found.is_precise
    assert len(found.candidate) == len(found.anchor) == 96
    assert found.doubts() == ()


def test_the_first_call_of_a_turn_is_not_counted(clock: FakeClock) -> None:
    last: list[str] = []

    def cold(name: str) -> ScriptedEngine:
        def duration_ns(_: int) -> int:
            took = MS if last == [name] else 3 * MS  # another engine's data is in the caches
            last[:] = [name]
            return took

        return ScriptedEngine(name, clock, [], duration_ns=duration_ns)

    found = compare(cold("A"), cold("B"), calls=2)
    assert found.candidate.ms.tolist() == [1.0] * len(found.candidate)
    assert found.anchor.ms.tolist() == [1.0] * len(found.anchor)


def test_a_fast_engine_is_timed_in_its_own_caches(clock: FakeClock) -> None:
    """Weights that a slow network pushed out come back in the first calls of a turn."""
    streak: list[str] = []

    def cold(name: str, ms: float, refills: int) -> ScriptedEngine:
        def duration_ns(_: int) -> int:
            streak[:] = [*streak, name] if name in streak else [name]
            return round(ms * MS * (2 if len(streak) <= refills else 1))

        return ScriptedEngine(name, clock, [], duration_ns=duration_ns)

    found = compare(cold("A", 0.25, 8), cold("B", 8.0, 2))
    assert found.ratio == pytest.approx(0.25 / 8)
    assert set(found.candidate.ms) == {0.25}
    assert found.calls_per_round == 2 * 8
    assert len(found.anchor) == 2 * 2 * len(found.round_ratios)  # those of 16 ms
    assert len(found.anchor_round_ms) == len(found.round_ratios)


def test_a_very_fast_engine_is_timed_for_longer_than_it_refills(clock: FakeClock) -> None:
    found = compare(steady("A", clock, [], 0.01), steady("B", clock, [], 40.0))
    assert found.calls_per_round == 2 * 150  # 1.5 ms a turn
    assert len(found.anchor) == 2 * len(found.round_ratios)  # the other has one call a turn
    assert len(found.anchor_round_ms) == len(found.round_ratios)


def test_the_interval_is_looked_at_ever_more_rarely(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def interval(ratios: list[float], error: float) -> tuple[float, float]:
        looks.append(len(ratios))
        return 0.0, 1.0

    monkeypatch.setattr("targets.timing._interval", interval)
    compare(steady("A", clock, [], 0.5), steady("B", clock, [], 1.0), rounds=40)
    assert looks == [6, 9, 14, 21, 32, 40]


def test_disturbed_calls_widen_the_interval(clock: FakeClock) -> None:
    def busy(call: int) -> int:
        clock.switches += call % 2
        return MS

    quiet = compare(steady("A", clock, [], 1.0), steady("B", clock, [], 1.0), calls=4)
    found = compare(
        ScriptedEngine("A", clock, [], duration_ns=busy), steady("B", clock, [], 1.0), calls=4
    )
    assert quiet.relative_error == pytest.approx(0.005)
    assert found.relative_error == pytest.approx(math.hypot(0.005, 0.25 * 0.02))


def test_drift_of_the_machine_cancels(clock: FakeClock) -> None:
    # everything slows down steadily in the course of the comparison
    def drifting(ms: float) -> ScriptedEngine:
        return ScriptedEngine(
            "e", clock, [], duration_ns=lambda _: round(ms * MS * (1 + clock.now_ns / 8e8))
        )

    found = compare(drifting(1.0), drifting(2.0), rounds=40, calls=4, precision=1e-6)
    assert found.anchor.ms[-1] > 1.3 * found.anchor.ms[0]
    assert found.ratio == pytest.approx(0.5, rel=0.005)
    assert any("anchor's own time moved" in doubt for doubt in found.doubts())


def test_an_imprecise_ratio_ends_at_the_cap_and_says_so(clock: FakeClock) -> None:
    generator = np.random.default_rng(0)
    noisy = ScriptedEngine(
        "A", clock, [], duration_ns=lambda _: round(MS * generator.uniform(0.5, 1.5))
    )
    found = compare(noisy, steady("B", clock, [], 1.0), rounds=8, calls=2)
    assert len(found.round_ratios) == 8
    assert not found.is_precise
    assert "1.0% was wanted" in found.doubts()[-1]


@pytest.mark.parametrize("ms", [0.1, 3.0, 40.0, 150.0])
def test_a_comparison_ends_before_its_time_limit(clock: FakeClock, ms: float) -> None:
    slow = steady("A", clock, [], ms), steady("B", clock, [], 2 * ms)
    found = compare(*slow, precision=0.0)
    assert clock.now_ns <= 3e9
    # as many rounds as fit; the one that did not fit took as long as the others
    assert found.round_ratios
    assert len(found.round_ratios) == 400 or clock.now_ns > 1.4e9


def test_an_engine_too_slow_for_the_limit_is_compared_once_and_doubted(clock: FakeClock) -> None:
    slow = steady("A", clock, [], 1000.0), steady("B", clock, [], 1000.0)
    found = compare(*slow, limit_s=5.0)
    assert len(found.round_ratios) == 1
    assert "only 1 of at least 6 rounds" in found.doubts()[0]


def test_interrupted_calls_do_not_move_the_ratio(clock: FakeClock) -> None:
    def interrupted(call: int) -> int:
        if call % 3:
            return MS
        clock.switches += 1
        return 20 * MS

    found = compare(
        ScriptedEngine("A", clock, [], duration_ns=interrupted),
        steady("B", clock, [], 1.0),
        calls=6,
    )
    assert found.ratio == 1.0
    assert np.count_nonzero(~found.candidate.clean) == len(found.candidate) // 3


def test_measure_warms_up_first(clock: FakeClock) -> None:
    fingerprint = cpu_fingerprint("t", "fp32", runtime="r", batch=1, threads=1, settings=())
    engine = ScriptedEngine("e", clock, [], duration_ns=lambda call: 9 * MS if call < 2 else MS)
    found = measure(engine, fingerprint, calls=40)
    assert found.median_ms() == 1.0
    assert found.samples.ms.max() == 1.0
    assert (found.warmup_calls, found.batch) == (engine.calls - 40, 1)
