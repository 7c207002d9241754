"""Layers (b) and (c) of `benchmarks/check.py`: checks replayed from real blocks, and simulated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.check_rivals import RULES, Block, alarms
from pipeline.check.boundary import ERROR_RATE, Boundary
from pipeline.check.latency import side_of
from pipeline.check.noise import MARGIN
from pipeline.check.result import Verdict
from targets.base import TargetOptions
from targets.fake import FakeTarget

STRETCH = 20  # mean length of the pieces in recorded order that a replayed check is made of
LIMIT = math.log1p(MARGIN)


def decide(log_ratios: Iterator[float], boundary: Boundary) -> tuple[Verdict, int]:
    """The product's own rule on a stream of log ratios: the verdict, and the processes it took."""
    seen: list[float] = []
    verdict: Verdict = "inconclusive"
    for value in islice(log_ratios, len(boundary.needed)):
        seen.append(value)
        verdict = side_of(boundary.interval(seen), LIMIT)
        if verdict != "inconclusive":
            break
    return verdict, len(seen)


@dataclass
class Tally:
    """Counts of verdicts and processes over many checks of one case."""

    checks: int = 0
    processes: int = 0
    verdicts: dict[str, int] | None = None
    rivals: dict[str, int] | None = None

    def add(self, verdict: Verdict, processes: int, rivals: dict[str, bool]) -> None:
        self.checks += 1
        self.processes += processes
        self.verdicts = self.verdicts or {"pass": 0, "regression": 0, "inconclusive": 0}
        self.verdicts[verdict] += 1
        self.rivals = self.rivals or dict.fromkeys(rivals, 0)
        for name, alarm in rivals.items():
            self.rivals[name] += alarm

    def to_json(self) -> dict[str, Any]:
        shares = {name: count / self.checks for name, count in (self.verdicts or {}).items()}
        return {
            "checks": self.checks,
            "shares": shares,
            "mean_processes": self.processes / self.checks,
            "rival_alarms": {n: count / self.checks for n, count in (self.rivals or {}).items()},
        }


# --- (b) replay -----------------------------------------------------------------------------------


def replay(
    candidate: Sequence[Block], baseline: Sequence[Block], checks: int, most: int, seed: int
) -> dict[str, Any]:
    """Checks made of recorded pairs of blocks; each rival sees the pairs that ours took.

    The order is the recorded one, in stretches of random beginning and length (Politis and Romano,
    1994), so that what lasts on the machine lasts in the replay. "kept" rivals compare with a
    baseline from another time of the recording, as gates do that keep one.
    """
    generator = np.random.default_rng(seed)
    boundary, tally = Boundary.of(most), Tally()
    pairs = zip(candidate, baseline, strict=True)
    logs = [math.log(a.comparable_ms / b.comparable_ms) for a, b in pairs]
    for _ in range(checks):
        order = _stretches(len(logs), most, generator)
        verdict, took = decide((logs[at] for at in order), boundary)
        used = order[:took]
        ours = [candidate[at] for at in used]
        found = alarms(ours, [baseline[at] for at in used])
        elsewhere = (used + generator.integers(len(logs))) % len(logs)
        kept = alarms(ours, [baseline[at] for at in elsewhere])
        tally.add(verdict, took, found | {f"{name}, kept": kept[name] for name in RULES})
    return tally.to_json()


def _stretches(pool: int, n: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Indices (n,) into a pool: runs of successive ones."""
    order = np.empty(n, np.int64)
    jumps = generator.random(n) < 1 / STRETCH
    jumps[0] = True
    order[jumps] = generator.integers(pool, size=int(jumps.sum()))
    for at in np.flatnonzero(~jumps):
        order[at] = (order[at - 1] + 1) % pool
    return order


# --- (c) Monte Carlo ------------------------------------------------------------------------------

SPREAD = 0.01  # of a process's log ratio, beside the noise of its calls
CALL_NOISE, CALLS = 0.02, 15  # a block's median errs as that of 150 calls with 6 % would
CENTRE_DRAWS = 100_000
TARGET_SEED = 1_000_000  # its stream must not be that of the effects
BASE_NS = 2_000_000

Law = Callable[[np.random.Generator, int], NDArray[np.float64]]  # (generator, n) -> (n,) effects


def _contaminated(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    """One process in ten is hit by 20 %, on either side."""
    hit = generator.random(n) < 0.1
    return SPREAD * generator.standard_normal(n) + hit * generator.choice([-0.2, 0.2], n)


def _lasting(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Each process inherits half of the last one's error: what the theory does not allow."""
    shocks = generator.standard_normal(n) * SPREAD * math.sqrt(1 - 0.5**2)
    values = np.empty(n)
    last = SPREAD * generator.standard_normal()
    for at in range(n):
        last = values[at] = 0.5 * last + shocks[at]
    return values


LAWS: dict[str, Law] = {
    "normal": lambda generator, n: SPREAD * generator.standard_normal(n),
    "Student t, 2 degrees": lambda generator, n: SPREAD * generator.standard_t(2, n),
    "skewed": lambda generator, n: SPREAD * (generator.exponential(size=n) - math.log(2)),
    "contaminated": _contaminated,
    "lasting": _lasting,
}
SLOWDOWNS = (0.0, MARGIN, 0.03, 0.05, 0.10)


def monte_carlo(checks: int, most: int) -> dict[str, Any]:
    """Verdicts on the fake target, whose true slowdown is known, under several laws of noise."""
    found: dict[str, Any] = {}
    for law_number, (name, law) in enumerate(LAWS.items()):
        for slowdown in SLOWDOWNS:
            seed = 1000 * law_number + round(1000 * slowdown)
            tally = _simulated(law, slowdown, checks, most, seed)
            found.setdefault(name, {})[f"{slowdown:.1%}"] = tally.to_json()
            print(f"{name}, {slowdown:.1%}: {tally.to_json()['shares']}", flush=True)
    setting = {"spread": SPREAD, "margin": MARGIN, "error_rate": ERROR_RATE, "most": most}
    return {**setting, "laws": found, "goals": _kept(found)}


def _kept(laws: dict[str, Any]) -> dict[str, bool]:
    """Whether the goals were met under every law whose processes are independent."""
    independent = [cases for name, cases in laws.items() if name != "lasting"]
    shares = [
        (float(slowdown[:-1]) / 100, case["shares"])
        for cases in independent
        for slowdown, case in cases.items()
    ]
    least = {
        name: min(cases[name]["shares"]["regression"] for cases in independent)
        for name in ("5.0%", "10.0%")
    }
    return {
        "false alarms": all(s["regression"] <= 0.01 for at, s in shares if at <= MARGIN),
        "wrong passes": all(s["pass"] <= 0.01 for at, s in shares if at >= MARGIN),
        "5%": least["5.0%"] >= 0.95,
        "10%": least["10.0%"] >= 0.99,
    }


def _simulated(law: Law, slowdown: float, checks: int, most: int, seed: int) -> Tally:
    generator = np.random.default_rng(seed)
    target = FakeTarget(TargetOptions(threads=1), noise=CALL_NOISE, seed=TARGET_SEED + seed)
    boundary, tally = Boundary.of(most), Tally()
    centre = _centre(law)
    for _ in range(checks):
        effects = law(generator, most) - centre
        verdict, took = decide(_log_ratios(target, effects, slowdown), boundary)
        tally.add(verdict, took, {})
    return tally


def _centre(law: Law) -> float:
    """The median of a process's log ratio without a slowdown: what the slowdown is added to."""
    generator = np.random.default_rng(0)
    calls = CALL_NOISE * generator.standard_normal((2, CENTRE_DRAWS // 100, 100, CALLS))
    ours, base = np.median(calls, axis=-1).reshape(2, CENTRE_DRAWS)
    effects = np.concatenate([law(generator, 100) for _ in range(CENTRE_DRAWS // 100)])
    return float(np.median(effects + ours - base))


def _log_ratios(
    target: FakeTarget, effects: NDArray[np.float64], slowdown: float
) -> Iterator[float]:
    """Of the medians of both engines' calls, one process after the other."""
    for effect in effects:
        ours_ns = target.noisy_ns(BASE_NS * (1 + slowdown) * math.exp(effect), CALLS)
        base_ns = target.noisy_ns(BASE_NS, CALLS)
        yield math.log(sorted(ours_ns)[CALLS // 2] / sorted(base_ns)[CALLS // 2])
