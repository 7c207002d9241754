"""The benchmark of `pipeline check`: replayed order, rivals, and what counts as found."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import check, check_engines, check_replay, table_check
from benchmarks.check_replay import decide, monte_carlo, replay
from benchmarks.check_rivals import Block, alarms
from pipeline.check.boundary import Boundary
from targets.samples import Samples


def block(median_ms: float, *, spread: float = 0.01, calls: int = 100) -> Block:
    return Block(median_ms, median_ms, median_ms, (spread * median_ms) ** 2, calls, 0.0)


def pool(ratio: float, seed: int, n: int = 60) -> list[Block]:
    drawn = np.random.default_rng(seed).standard_normal(n)
    return [block(2.0 * ratio * math.exp(0.004 * value)) for value in drawn]


def test_a_block_keeps_what_the_gates_need() -> None:
    wall_ns = np.array([1_000_000, 2_000_000, 3_000_000, 90_000_000])
    made = Block.of(Samples(wall_ns, wall_ns, np.array([0, 0, 0, 1])))
    assert (made.comparable_ms, made.median_ms, made.mean_ms) == (1.5, 2.5, 24.0)
    assert (made.calls, made.disturbed) == (4, 0.25)


def test_rivals_alarm_by_their_own_rules() -> None:
    base = [block(2.0)] * 10
    assert alarms(base, base) == dict.fromkeys(alarms(base, base), False)
    slightly, more, most = ([block(2.0 * ratio)] * 10 for ratio in (1.01, 1.06, 1.11))
    assert list(alarms(slightly, base).values()) == [False, True, False]
    assert list(alarms(more, base).values()) == [True, True, False]
    assert list(alarms(most, base).values()) == [True, True, True]


def test_replay_keeps_the_recorded_order_in_stretches() -> None:
    order = check_replay._stretches(50, 400, np.random.default_rng(0))
    followed = np.diff(order) % 50 == 1
    assert 0.9 < followed.mean() < 0.99
    assert set(order) == set(range(50))


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0, "pass"), (1.06, "regression")])
def test_replayed_checks_find_what_is_there(ratio: float, verdict: str) -> None:
    found = replay(pool(ratio, 0), pool(1.0, 1), checks=50, most=40, seed=0)
    assert found["checks"] == 50
    assert found["shares"][verdict] == 1.0
    assert found["mean_processes"] < 20
    assert len(found["rival_alarms"]) == 6


def test_a_decision_stops_at_the_first_look_that_tells() -> None:
    boundary = Boundary.of(40)
    assert decide(iter([0.0] * 40), boundary) == ("pass", boundary.fewest)
    assert decide(iter([1.0] * 40), boundary) == ("regression", boundary.fewest)
    assert decide(iter([0.0, 1.0] * 20), boundary) == ("inconclusive", 40)


def test_monte_carlo_states_its_goals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_replay, "SLOWDOWNS", (0.0, 0.05, 0.10))
    found = monte_carlo(20, 40)
    assert found["goals"] == dict.fromkeys(found["goals"], True)
    wrong = {law: dict(cases) for law, cases in found["laws"].items()}
    wrong["normal"]["0.0%"] = wrong["normal"]["10.0%"]
    assert check_replay._kept(wrong)["false alarms"] is False


def test_the_table_shows_whichever_layers_there_are() -> None:
    silent = alarms([block(2.0)], [block(2.0)])
    live = {"verdict": "pass", "wall_s": 12.0, "processes": 10, "rivals": silent}
    replayed = replay(pool(1.06, 0), pool(1.0, 1), checks=10, most=40, seed=0)
    replayed |= {"blocks": 60, "mean_processes": 12.0}
    truth = {"slowdown": {"same": 0.001, "5%": 0.052}}
    result = {
        "live": {
            "truth": truth,
            "cases": {"A/A": dict.fromkeys(("quiet", "both"), check._shares([live, live]))},
            "seconds_median": 12.0,
        },
        "replay": {"truth": truth, "cases": {"5%": {"noisy": replayed}}},
    }
    text = table_check.check(result)
    assert "and checks replayed from recorded blocks" in text
    assert "True slowdowns, measured long: same: +0.1%, 5%: +5.2%." in text
    assert "| A/A, nothing else running | 2 | 100.0% | 0.0% | 0.0% | 0.0% | 0.0% | 0.0% |" in text
    assert "| 5%, bursts on any core, replayed | 10 | 0.0% | 100.0% |" in text
    assert "Replayed from 60 processes of each engine" in text
    assert "so 60 are 5 checks that share nothing" in text
    assert "took 12 s (median). No false alarm in 2 says: fewer than 77.6% (95 %)." in text
    result["live"]["cases"]["A/A"]["both"]["shares"]["regression"] = 0.5
    assert "(median). 1 of 2 were false alarms." in table_check.check(result)
    assert "Simulated" not in text
    assert "eplayed" not in table_check.check({"live": result["live"]})
    assert table_check.check({}) == ""


def test_live_goals_are_met_or_missed() -> None:
    assert check._goals({"A/A": 0.01, "5%": 0.95, "10%": 0.99}) == {
        "false alarms": True,
        "5%": True,
        "10%": True,
    }
    assert not any(check._goals({"A/A": 0.02, "5%": 0.94, "10%": 0.98}).values())
    wanted = list(check._wanted(None))
    assert len(wanted) == len(set(wanted)) == 140
    assert sum(condition == "noisy" for _, condition, _ in wanted) == 70


def test_engines_that_are_not_slow_enough_get_more_channels_by_the_slope() -> None:
    chosen = {"3%": 96, "5%": 160, "10%": 320}
    measured = {"3%": 0.024, "5%": 0.052, "10%": 0.080}  # 0.025 % a channel
    corrected = check_engines._corrected(chosen, measured)
    assert corrected["5%"] == 160  # is slow enough
    for name in ("3%", "10%"):
        reached = measured[name] + 0.00025 * (corrected[name] - chosen[name])
        assert check_engines.SHARES[name] <= reached < check_engines.SHARES[name] + 0.01
    with pytest.raises(SystemExit, match="no engine is 10% slower"):
        check_engines._corrected(chosen | {"10%": check_engines.EXTRA[-1]}, measured)
