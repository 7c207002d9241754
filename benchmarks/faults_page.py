"""docs/reliability.md from the results of `benchmarks.faults` and `benchmarks.fuzz`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults_kills import CHECKS
from benchmarks.faults_run import CLOCKED, VARYING

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
GROUPS = {
    "disk": "Disks",
    "machine": "Clock and other commands",
    "processes": "Memory and processes",
    "numbers": "Numbers that are none",
    "images": "Images",
    "shapes": "Unusual paths and sizes, and what a bundle must not hold",
}
WORDS = {
    "bundle": "The same command ends with a bundle that opens",
    "plan": "Its plan is that of a run that was not killed",
    "same": "All that can repeat is equal: files by SHA-256, the certificate by its values",
    "rows": "Every stored measurement is still there, with its raw samples",
    "whole": "Nothing half-written under a final name when it was killed",
    "tidy": "No temporary file left in the run or in memory",
    "told": "`events.jsonl` tells each stage's end, and which was taken up again",
}
assert set(WORDS) == set(CHECKS)

Result = Mapping[str, Any]


def render(result: Result, fuzz: Result) -> str:
    """The whole page; every number in it is counted here."""
    parts = _head(result), _kills(result["kills"]), _faults(result["faults"]), _damages(fuzz)
    return "\n".join(line for part in parts for line in part) + "\n"


def _head(result: Result) -> list[str]:
    machine = result["environment"]["machine"]
    made = ", ".join(f"{count} at {commit[:7]}" for commit, count in result["commits"].items())
    return [
        "# Reliability",
        "",
        "What happens to a run when something happens to it. Every line of these tables was tried "
        "from outside, by the console command, on a network of four convolutions and 240 digits; "
        "`python -m benchmarks.faults --work DIR` does it again, and this page is made from "
        f"`benchmarks/results/faults.json` (trials by commit: {made}; {machine['device']}, "
        f"seed {result['seed']}).",
        "",
    ]


# kills --------------------------------------------------------------------------------------


def _kills(kills: Result) -> list[str]:
    lines = [line for line in kills if kills[line]["runs"]]
    if not lines:
        return []
    total = sum(len(kills[line]["runs"]) for line in lines)
    head = [
        f"## Killed at a random time: {total} runs",
        "",
        "`pipeline run` is started on an empty folder; at a time drawn uniformly from the length "
        "of an uninterrupted run (in processor time, since others use this machine, too) its whole "
        "process group gets `kill -9`; then the same command is given again. On `fake` latencies "
        "are a formula; on `ort-cpu` a clock decides them, so there the budget is a count of "
        "multiply-adds, and plan and weights can repeat.",
        "",
        _row(["", *(f"`{line}`" for line in lines)]),
        _rule(len(lines) + 1),
    ]
    counted = [_row([words, *(_share(kills[line]["runs"], check) for line in lines)])
               for check, words in WORDS.items()]  # fmt: skip
    return [*head, *_facts(kills, lines), *counted, "", *_moments(kills, lines), *_varying()]


def _facts(kills: Result, lines: Sequence[str]) -> list[str]:
    runs = {line: kills[line]["runs"] for line in lines}

    def sums(key: str, line: str) -> str:
        return f"{sum(run[key] for run in runs[line]):,}"

    return [
        _row(["Runs killed", *(str(len(runs[line])) for line in lines)]),
        _row(["Ended before the time that was drawn, not counted",
              *(str(kills[line]["ended_before"]) for line in lines)]),
        _row(["Measurements stored when they were killed", *(sums("rows_kept", n) for n in lines)]),
        _row(["Of these lost or changed", *(sums("rows_lost", n) for n in lines)]),
    ]  # fmt: skip


def _share(runs: Sequence[Result], check: str) -> str:
    fine = sum(check not in run["faults"] for run in runs)
    return f"{fine} of {len(runs)}"


def _moments(kills: Result, lines: Sequence[str]) -> list[str]:
    """At what the runs were when they were killed."""
    counts = {line: Counter(run["stage"] for run in kills[line]["runs"]) for line in lines}
    order = dict.fromkeys(
        stage for line in lines for run in kills[line]["runs"] for stage in [run["stage"]]
    )
    ranked = sorted(order, key=lambda stage: -sum(counts[line][stage] for line in lines))
    said = ", ".join(
        f"{stage} {'+'.join(str(counts[line][stage]) for line in lines)}" for stage in ranked
    )
    return [f"At work when killed ({' + '.join(lines)}): {said}.", ""]


def _varying() -> list[str]:
    """Which files of a bundle cannot repeat, and why."""
    rows = [f"- `{name}`: {why}" for name, why in VARYING.items()]
    left = ", ".join(f"`{key}`" for key in CLOCKED["ort-cpu"])
    return [
        "Every other file of the bundle is compared by its SHA-256. These cannot be equal:",
        "",
        *rows,
        "",
        f"Certificates are compared by their values, on `fake` all but `{CLOCKED['fake'][0]}`, on "
        f"`ort-cpu` all but {left}.",
        "",
    ]


# other faults -------------------------------------------------------------------------------


def _faults(faults: Sequence[Result]) -> list[str]:
    found = [fault for fault in faults if fault["found"]]
    lines: list[str] = []
    for group, title in GROUPS.items():
        rows = [_fault_row(fault) for fault in found if fault["group"] == group and _tried(fault)]
        if rows:
            head = _row(["Fault", "Expected", "Tried", "As expected"])
            lines += [f"## {title}", "", head, _rule(4), *rows, ""]
    untried = [fault["what"] for fault in faults if not _tried(fault)]
    if untried:
        lines += ["Not tried on this machine:", "", *(f"- {what}" for what in untried), ""]
    return lines


def _fault_row(fault: Result) -> str:
    tried = _tried(fault)
    fine = sum(trial["outcome"] == "expected" for trial in tried)
    return _row([fault["what"], fault["expected"], str(len(tried)), str(fine)])


def _tried(fault: Result) -> list[Result]:
    return [trial for trial in fault["found"] if trial["outcome"] != "untried"]


# damaged files ------------------------------------------------------------------------------


def _damages(fuzz: Result) -> list[str]:
    """One row for each kind of file."""
    total = sum(found["trials"] for found in fuzz["subjects"].values())
    columns = ["File", "Damaged", "Refused in one line", "Means what it meant",
               "A sound other one", "Failed"]  # fmt: skip
    return [
        f"## Damaged files: {total:,}",
        "",
        "One damage each, drawn by its number: flipped bits, pieces cut out or repeated, swapped "
        "or renamed files, links, huge numbers, deep JSON, wrong types. It fails by any other "
        "exception than a refusal, by hanging, by writing outside its folder, by starting a "
        "process, and by accepting what was changed in meaning. In a forged bundle the digests "
        "were made right again, and nothing says what plans, groups, databases and graphs were: of "
        "those a sound other one may be accepted, but not where it had been signed. "
        "`python -m benchmarks.fuzz` does it again; from `benchmarks/results/fuzz.json` "
        f"(commit {fuzz['environment']['commit'][:7]}).",
        "",
        _row(columns),
        _rule(len(columns)),
        *(_damage_row(name, found) for name, found in fuzz["subjects"].items()),
    ]


def _damage_row(name: str, found: Result) -> str:
    outcomes = (found["outcomes"].get(key, 0) for key in ("refused", "same", "other"))
    counts = found["trials"], *outcomes, found["failure_count"]
    return _row([name, *(f"{count:,}" for count in counts)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|---" * columns + "|"
