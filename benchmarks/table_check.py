"""The table on `pipeline check`, from whichever layers of its benchmark have run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

RIVALS = ("pytest-benchmark mean:5%", "t-test, p < 0.01", "fixed 10 % rule")
CONDITIONS = {"quiet": "nothing else running", "noisy": "bursts on any core"}
LASTING = "lasting"  # the law under which processes depend on each other


def check(result: dict[str, Any]) -> str:
    """One table of whole checks, live and replayed; then what was simulated."""
    lines: list[str] = []
    rows = [*_measured("live", result), *_measured("replay", result)]
    if rows:
        lines += [
            _truth(result),
            "",
            "| case | checks | pass | regression | inconclusive "
            "| alarms of pytest-benchmark's mean:5% | of a t-test (1 %) | of a fixed 10 % rule |",
            "|---" * 8 + "|",
            *rows,
            "",
        ]
    if "live" in result:
        lines += [_live(result["live"]), ""]
    if "replay" in result:
        lines += [_replayed(result["replay"]), ""]
    if "monte_carlo" in result:
        lines += _simulated(result["monte_carlo"])
    return "\n".join(lines)


def _truth(result: dict[str, Any]) -> str:
    slowdowns = (result.get("live") or result["replay"])["truth"]["slowdown"]
    by_size = sorted(slowdowns, key=slowdowns.get)
    told = ", ".join(f"{name}: {slowdowns[name]:+.1%}" for name in by_size)
    replayed = ", and checks replayed from recorded blocks" if "replay" in result else ""
    return (
        f"Whole checks by `pipeline check` on `ort-cpu`, one thread, margin 2.5 %{replayed}; the "
        f"other gates judge the same calls. True slowdowns, measured long: {told}."
    )


def _live(found: dict[str, Any]) -> str:
    """How long a check took, and what so few of them can prove."""
    alike = found["cases"]["A/A"]["both"]
    if alarms := round(alike["shares"]["regression"] * alike["checks"]):
        told = f"{alarms} of {alike['checks']} were false alarms."
    else:
        most = 1 - 0.05 ** (1 / alike["checks"])
        told = f"No false alarm in {alike['checks']} says: fewer than {most:.1%} (95 %)."
    return f"A live check took {found['seconds_median']:.0f} s (median). {told}"


def _replayed(found: dict[str, Any]) -> str:
    """How much was recorded, and that many checks of it are not as many independent ones."""
    rows = [row for conditions in found["cases"].values() for row in conditions.values()]
    blocks = min(row["blocks"] for row in rows)
    most = max(row["mean_processes"] for row in rows)
    return (
        f"Replayed from {blocks} processes of each engine, quiet, and {blocks} beside bursts, in "
        f"stretches of recorded order. A check takes {most:.0f} of them on average where it takes "
        f"most, so {blocks} are {blocks / most:.0f} checks that share nothing: the shares are "
        "those of this record, no bound for all days."
    )


def _measured(layer: str, result: dict[str, Any]) -> Iterator[str]:
    for case, conditions in result.get(layer, {}).get("cases", {}).items():
        for condition, words in CONDITIONS.items():
            if condition in conditions:
                found = conditions[condition]
                label = f"{case}, {words}" + (", replayed" if layer == "replay" else "")
                alarms = [found["rival_alarms"][name] for name in RIVALS]
                yield _row(label, found, alarms)


def _row(label: str, found: dict[str, Any], alarms: Sequence[float]) -> str:
    shares = [found["shares"][name] for name in ("pass", "regression", "inconclusive")]
    cells = " | ".join(f"{share:.1%}" for share in (*shares, *alarms))
    return f"| {label} | {found['checks']:,} | {cells} |"


def _simulated(found: dict[str, Any]) -> list[str]:
    laws = {name: cases for name, cases in found["laws"].items() if name != LASTING}
    checks = next(iter(next(iter(laws.values())).values()))["checks"]
    lines = [
        f"Simulated with the fake target: {checks:,} checks for each true slowdown and each of "
        f"{len(laws)} laws of noise ({', '.join(laws)}; {found['spread']:.0%} from process to "
        "process), at the default margin; the law that did worst.",
        "",
        "| true slowdown | called a regression | passed | processes |",
        "|---|---|---|---|",
    ]
    for slowdown in next(iter(laws.values())):
        cases = [law[slowdown] for law in laws.values()]
        lines.append(_worst_row(slowdown, cases, found["margin"]))
    at_margin = found["laws"][LASTING][f"{found['margin']:.1%}"]["shares"]["regression"]
    return [
        *lines,
        "",
        "Where each process inherits half of the last one's error, which the theory does not "
        f"allow, a slowdown of just the margin is called a regression in {at_margin:.1%}.",
        "",
    ]


def _worst_row(slowdown: str, cases: Sequence[dict[str, Any]], margin: float) -> str:
    """The least favourable law: most alarms up to the margin, fewest beyond it."""
    within = float(slowdown[:-1]) / 100 <= margin
    pick = max if within else min
    regressions = pick(case["shares"]["regression"] for case in cases)
    beyond = float(slowdown[:-1]) / 100 >= margin
    passes = (max if beyond else min)(case["shares"]["pass"] for case in cases)
    processes = max(case["mean_processes"] for case in cases)
    return f"| {slowdown} | {regressions:.2%} | {passes:.2%} | {processes:.0f} |"
