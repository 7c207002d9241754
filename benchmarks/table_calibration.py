"""The tables of calibrations: errors on held-out networks, and what speed costs."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from benchmarks.common import machines

Document = Mapping[str, Any]

OURS = "LPNet"


def calibration(result: Document, candidates: Document, fleet: Document) -> str:
    cases = result["cases"]
    devices = {name: case["fingerprint"]["device"] for name, case in cases.items()}
    lines = [
        f"{_held_out(cases)} networks held out of each calibration, measured in rounds, each by "
        f"another process on engines of its own; errors are to the mean of a network's rounds, and "
        f"how far two rounds differ shows how near a measurement comes to itself: "
        f"{machines(devices)}, one thread, random weights. "
        f"{_most(cases)}, stopped at a held-out error of 1 %.{_versions(cases)}{_older(cases)}",
        "",
        "| network on target | samples (minutes) | mean error | within 5 % | within 10 % | rank "
        "| 90 % interval covers | best of the others: mean, within 5 % "
        "| rounds (their mean known to) | two rounds differ by: mean, within 5 % |",
        "|---" * 10 + "|",
        *(_row(name, case) for name, case in cases.items()),
        "",
        "All predictors, fitted on the same samples and asked for the same networks, mean over the "
        "cases:",
        "",
        "| predictor | mean error | within 5 % | within 10 % | worst case: mean, within 5 % |",
        "|---|---|---|---|---|",
        *(_method(name, cases) for name in next(iter(cases.values()))["methods"]),
        "",
        _short(cases),
        "",
        *_transfers(result["transfer"]),
        _speed(cases, candidates, fleet),
        "",
        "![predicted against measured latency](../benchmarks/results/calibration-scatter.svg)",
        "",
    ]
    return "\n".join(lines)


def _most(cases: Document) -> str:
    samples = {case["most"]["samples"] for case in cases.values()}
    minutes = sorted({case["most"]["minutes"] for case in cases.values()})
    return (
        f"Calibrated with at most {max(samples)} networks or, by network, {minutes[0]:g} to "
        f"{minutes[-1]:g} minutes"
    )


def _versions(cases: Document) -> str:
    """Whether cases were made by different commits."""
    count = len({case["made"]["commit"] for case in cases.values()})
    told = f" The rows come from {count} versions of wgates; the result file has their commits."
    return told if count > 1 else ""


def _older(cases: Document) -> str:
    """What rows mean that are older than rounds."""
    if all("rounds" in case["held_out"] for case in cases.values()):
        return ""
    return (
        " Rows of one round are older: a third of their networks was measured once more for the "
        "last column, or none."
    )


def _held_out(cases: Document) -> str:
    counts = {case["held_out"]["networks"] for case in cases.values()}
    return " or ".join(str(count) for count in sorted(counts))


def _row(name: str, case: Document) -> str:
    ours = case["methods"][OURS]
    others = {name: found for name, found in case["methods"].items() if name != OURS}
    best = min(others, key=lambda name: others[name]["mean"])
    cells = [
        name,
        f"{case['samples']} ({case['minutes']:.0f})",
        *(f"{ours['mean']:.1%}", f"{ours['within_5']:.0%}", f"{ours['within_10']:.0%}"),
        f"{ours['spearman']:.3f}",
        f"{case['interval']['coverage']:.0%}",
        f"{best}: {others[best]['mean']:.1%}, {others[best]['within_5']:.0%}",
        _rounds(case["held_out"]),
        _repeat(case.get("repeat")),
    ]
    return f"| {' | '.join(cells)} |"


def _rounds(held_out: Document) -> str:
    """How often the networks were measured; results that are older than rounds: once."""
    if "rounds" not in held_out:
        return "1"
    return f"{held_out['rounds']} ({held_out['standard_error']:.1%})"


def _repeat(found: Document | None) -> str:
    """Of a result that is older than rounds: not known."""
    return "–" if found is None else f"{found['mean']:.1%}, {found['within_5']:.0%}"


def _method(name: str, cases: Document) -> str:
    found = [case["methods"][name] for case in cases.values()]
    worst = max(found, key=lambda item: item["mean"])
    cells = [
        name,
        f"{mean(item['mean'] for item in found):.1%}",
        f"{mean(item['within_5'] for item in found):.1%}",
        f"{mean(item['within_10'] for item in found):.1%}",
        f"{worst['mean']:.1%}, {worst['within_5']:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def _short(cases: Document) -> str:
    """Which goals were not reached, and where another predictor was better."""
    open_goals = {
        name: [goal.replace("_", " ") for goal, met in case["met"].items() if not met]
        for name, case in cases.items()
    }
    missed = [f"{name} ({', '.join(goals)})" for name, goals in open_goals.items() if goals]
    beaten = [
        f"{name} ({other})"
        for name, case in cases.items()
        for other, found in case["methods"].items()
        if found["mean"] < case["methods"][OURS]["mean"]
    ]
    goals = "95 % within 5 %, 99 % within 10 %, mean 2 %, rank 0.98, coverage 85 to 95 %"
    reached = f"not met: {'; '.join(missed)}" if missed else "all met"
    better = f"better on {', '.join(beaten)}" if beaten else "better nowhere"
    return f"Goals ({goals}): {reached}. Another predictor was {better}."


def _transfers(found: list[Document]) -> list[str]:
    if not found:
        return []
    return [
        "Begun from the LPNet of the other runtime (`--prior`), measurements until 90 % of the "
        "networks are within 5 %:",
        "",
        "| from | to | that LPNet as it is, within 5 % | with the prior | without |",
        "|---|---|---|---|---|",
        *(
            f"| {item['from']} | {item['to']} | {item['as_it_is']:.0%} "
            f"| {_count(item, 'with_prior')} | {_count(item, 'without')} |"
            for item in found
        ),
        "",
    ]


def _count(item: Document, way: str) -> str:
    needed, tried = item["needed"][way], item["points"][-1]["samples"]
    return f"more than {tried}" if needed is None else str(needed)


def _speed(cases: Document, candidates: Document, fleet: Document) -> str:
    timed = [case["share_timed"] for case in cases.values()]
    batch = max(case["batch_ms"] for case in cases.values())
    efficiency = ", ".join(
        f"{row['efficiency']:.2f} at {row['devices']}" for row in fleet["fleets"]
    )
    return (
        f"Between {min(timed):.0%} and {max(timed):.0%} of a calibration's wall time is timed "
        f"inference; 10 000 width vectors take at most {batch:.0f} ms on one thread; a candidate "
        f"of ResNet-50 is cut in {candidates['slice_ms']['median']:.0f} ms (p90 "
        f"{candidates['slice_ms']['p90']:.0f} ms), {candidates['speedup']:.0f} times faster than "
        f"torch surgery and export. Efficiency of a fleet by devices, all simulated on the same "
        f"{fleet['cores']} cores: {efficiency} (where each was busy for "
        f"{fleet['fleets'][-1]['busy_share']:.0%} of the time, longer at each network)."
    )
