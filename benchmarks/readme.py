"""Writes the README's tables from the committed result files; `--check` only compares."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.readme_accuracy import accuracy, longer, variants
from benchmarks.readme_budgets import budgets
from benchmarks.readme_calibration import calibration
from benchmarks.readme_check import check
from benchmarks.readme_coverage import coverage
from benchmarks.readme_luck import luck
from benchmarks.readme_refill import refill
from benchmarks.readme_serve import serve
from benchmarks.readme_training import training
from pipeline.report import summary_rows

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def main() -> int:
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    new = render(text)
    if "--check" in sys.argv:
        print("README.md agrees with the results" if new == text else "README.md is stale")
        return int(new != text)
    path.write_text(new, encoding="utf-8")
    return 0


TABLE_RULE = "|---" * 4 + "|"


def render(text: str) -> str:
    """The README with the parts between its markers made anew."""
    for name, files, table in (
        ("demo", ("demo.json",), _demo),
        ("int8", ("int8.json", "openvino-int8.json"), _int8),
        ("timing", ("timing.json", "judges.json"), _timing),
        ("refill", ("refill.json",), refill),
        ("luck", ("luck.json",), luck),
        ("calibration", ("calibration.json", "candidates.json", "fleet.json"), calibration),
        ("check", ("check.json",), check),
        ("accuracy", ("accuracy.json",), accuracy),
        ("longer", ("accuracy-long.json",), longer),
        ("variants", ("accuracy-thin.json",), variants),
        ("coverage", ("coverage.json",), coverage),
        ("budgets", ("budgets.json",), budgets),
        ("training", ("gated-step.json", "training.json"), training),
        ("serve", ("serve.json",), serve),
    ):
        pattern = re.compile(rf"(<!-- {name}: [^>]* -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            continue
        body = table(*(json.loads((RESULTS / file).read_text("utf-8")) for file in files))
        text = pattern.sub(lambda found, body=body: f"{found[1]}{body}{found[2]}", text)
    return text


def _demo(result: dict[str, Any]) -> str:
    first = result["runs"][0]
    rows = summary_rows(first["certificate"])
    lines = ["| | dense | pruned |", "|---|---|---|"]
    lines += [f"| {label} | {dense} | {pruned} |" for label, dense, pruned in rows]
    held, machine = first["held_out"], result["environment"]["machine"]
    seconds = ", ".join(f"{run['seconds']:.0f}" for run in result["runs"])
    verdicts = ", ".join(result["verdicts"])
    lines += [
        "",
        f"Seed 0 on {machine['device']}, {machine['runtime']}, one thread. Over seeds "
        f"{', '.join(str(run['seed']) for run in result['runs'])}: verdicts {verdicts}; top-1 "
        f"{_tops(result)} %; {seconds} s in all; largest process "
        f"{result['peak_process_bytes'] / 2**30:.1f} GiB. LPNet's held-out error: "
        f"{held['mean']:.1%} mean, {held['within_5']:.0%} of {held['records']} networks within "
        "5 %. "
        "The machine is small and shared: read ratios, not milliseconds.",
        "",
    ]
    return "\n".join(lines)


def _tops(result: dict[str, Any]) -> str:
    pairs = []
    for run in result["runs"]:
        accuracy = run["certificate"]["accuracy"]
        pairs.append(
            f"{100 * accuracy['dense']['top1']:.1f} -> {100 * accuracy['engine']['top1']:.1f}"
        )
    return ", ".join(pairs)


def _int8(ort: dict[str, Any], openvino: dict[str, Any]) -> str:
    """Latency of int8 over fp32 on the same runtime, one row a network."""
    rows = {}
    for found in ort["networks"]:
        name = found["network"].partition(",")[0]
        rows[name] = [_share(found["latency_over_fp32"]["asymmetric"])]
    for found in openvino["networks"]:
        cells = [_share(found[form]["over_fp32"]) for form in ("qdq", "nncf")]
        rows[found["network"]] = [*rows.get(found["network"], ["–"]), *cells]
    lines = [
        "Latency of int8 as a share of fp32's on the same runtime, batch 1, one thread, 95 % "
        "interval:",
        "",
        "| network | `ort-cpu-int8` | `openvino-cpu-int8`, Q/DQ | `openvino-cpu-int8`, NNCF |",
        TABLE_RULE,
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
        "",
        "Q/DQ is what `openvino-cpu-int8` prefers where the two tie; both are measured on your "
        "network before one is chosen. The networks at 224 pixels have random weights. An "
        "asterisk: the measurement has doubts, which the result file lists.",
        "",
    ]
    return "\n".join(lines)


def _share(found: dict[str, Any]) -> str:
    ratio, interval = found["ratio"], found.get("ci95") or found["ratio_ci95"]
    doubt = "*" if found["doubts"] else ""
    return f"{ratio:.3f}{doubt} ({interval[0]:.3f} to {interval[1]:.3f})"


CONDITIONS = {
    "quiet": "nothing else running",
    "other": "a busy process on the other core",
    "same": "a busy process on the same core",
    "bursts": "bursts on either core",
}
METHODS = ("wgates", "plain median", "plain mean", "plain min")


def _timing(timing: dict[str, Any], judges: dict[str, Any]) -> str:
    """Share of trials within the tolerance and 95 % quantile of the error, ours and plain ones'."""
    trials = {found["trials"] for found in timing["summary"].values()}
    lines = [
        f"Two networks whose true ratio is known; {max(trials)} trials under each condition, each "
        "in a fresh process, all methods with equal time. Each cell: share of trials within the "
        "tolerance; 95 % of the errors are below.",
        "",
        "| condition (tolerance) | wgates | plain median | plain mean | plain minimum "
        "| our 95 % interval covers | median s |",
        "|---" * 7 + "|",
        *(_condition_row(name, found) for name, found in timing["summary"].items()),
        "",
        _judged(judges),
        "",
    ]
    return "\n".join(lines)


def _condition_row(name: str, found: dict[str, Any]) -> str:
    cells = [
        f"{found['methods'][method]['within']:.0%}; {found['methods'][method]['error_p95']:.1%}"
        for method in METHODS
    ]
    label = f"{CONDITIONS[name]} ({found['tolerance']:.0%})"
    end = f"{found['coverage']:.0%} | {found['seconds_median']:.2f}"
    return f"| {label} | {' | '.join(cells)} | {end} |"


def _judged(judges: dict[str, Any]) -> str:
    told = [
        f"{name} {found['difference']:+.1%} ({size} network)"
        for size, of in judges["agreement"].items()
        for name, found in of.items()
    ]
    loop = judges["overhead"]["ort-cpu"]["difference"]
    return (
        "Beside outside judges on the same model, interleaved, our median differs by: "
        f"{'; '.join(told)}. The loop itself changes the median of a 1 ms engine by {loop:+.2%}."
    )


if __name__ == "__main__":
    raise SystemExit(main())
