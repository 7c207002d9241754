"""Writes the tables of README.md and docs/ from the committed results; `--check` only compares."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.table_accuracy import accuracy, longer, variants
from benchmarks.table_budgets import budgets
from benchmarks.table_calibration import calibration
from benchmarks.table_check import check
from benchmarks.table_coverage import coverage
from benchmarks.table_demo import demo
from benchmarks.table_headlines import NEEDED, headlines
from benchmarks.table_int8 import int8
from benchmarks.table_luck import luck
from benchmarks.table_refill import refill
from benchmarks.table_serve import serve
from benchmarks.table_timing import timing
from benchmarks.table_training import training

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# a marker, the name of its table, the table, the marker that ends it
MARKED = re.compile(r"(<!-- (\w+): [^>]* -->\n)(.*?)(<!-- /\2 -->)", re.DOTALL)


@dataclass(frozen=True)
class Table:
    """What lies between two markers of a page."""

    text: Callable[..., str]  # of the results, in the order of `results`
    results: tuple[str, ...]  # names of files in benchmarks/results

    def render(self) -> str:
        return self.text(
            *(json.loads((RESULTS / name).read_text(encoding="utf-8")) for name in self.results)
        )


TABLES = {
    "headlines": Table(headlines, NEEDED),
    "demo": Table(demo, ("demo.json",)),
    "int8": Table(int8, ("int8.json", "openvino-int8.json")),
    "timing": Table(timing, ("timing.json", "judges.json")),
    "refill": Table(refill, ("refill.json",)),
    "luck": Table(luck, ("luck.json",)),
    "calibration": Table(calibration, ("calibration.json", "candidates.json", "fleet.json")),
    "check": Table(check, ("check.json",)),
    "accuracy": Table(accuracy, ("accuracy.json",)),
    "longer": Table(longer, ("accuracy-long.json",)),
    "variants": Table(variants, ("accuracy-thin.json",)),
    "coverage": Table(coverage, ("coverage.json",)),
    "budgets": Table(budgets, ("budgets.json",)),
    "training": Table(training, ("gated-step.json", "training.json")),
    "serve": Table(serve, ("serve.json",)),
}


def pages() -> list[Path]:
    """All that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def render(text: str) -> str:
    """A page with the parts between its markers made anew; KeyError where no table has the name."""
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]].render()}{found[4]}", text)


def placed() -> list[str]:
    """The names of the tables that the pages hold, in order."""
    return [found[2] for page in pages() for found in MARKED.finditer(page.read_text("utf-8"))]


def main() -> int:
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = render(text)
        if new != text:
            stale.append(page.relative_to(ROOT).as_posix())
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    if "--check" in sys.argv:
        print(f"stale: {', '.join(stale)}" if stale else "all pages agree with the results")
        return int(bool(stale))
    print(f"written: {', '.join(stale)}" if stale else "nothing to write")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
