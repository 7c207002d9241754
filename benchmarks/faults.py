"""Faults that happen to a run from outside, by the console command; docs/reliability.md of them.

python -m benchmarks.faults --work DIR                # all of it; goes on where it was ended
python -m benchmarks.faults --work DIR --kills 10 --only disk,images
python -m benchmarks.faults --render                  # docs/reliability.md, of fuzz.json as well
python -m benchmarks.faults --check                   # fails if that page does not follow from it

The seed draws the times of the kills. A trial's folder is kept if it surprised.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import faults_disks, faults_images, faults_processes
from benchmarks.common import RESULTS, commit, environment, write_result
from benchmarks.faults_kills import Kill, killed_run, reference_run, require_like
from benchmarks.faults_page import PAGE, render
from benchmarks.faults_place import Fault, Place
from benchmarks.faults_project import LINES, Project, SurpriseError, UntriedError

RESULT, FUZZ = "faults.json", "fuzz.json"
KILLS = 50  # of each line
MOST_EARLY = 3  # runs, for each that is killed, which may end before they are
FAULTS: tuple[Fault, ...] = (*faults_disks.FAULTS, *faults_processes.FAULTS, *faults_images.FAULTS)


class Log:
    """One JSON line a trial, so that a study which was ended goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self, kind: str) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line["kind"] == kind]

    def commits(self) -> dict[str, int]:
        """How many trials were made at which commit, kills and runs that ended early among them."""
        made = [line["commit"] for kind in ("kill", "trial") for line in self.all(kind)]
        return dict(Counter(made).most_common())

    def add(self, kind: str, **values: Any) -> None:
        values["commit"] = commit()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")
        print(kind, json.dumps(values)[:300], flush=True)


@dataclass(frozen=True)
class Study:
    """A folder of trials, and a finished run of each line."""

    work: Path
    log: Log
    seed: int
    references: dict[str, Project]
    seconds: dict[str, float]

    @classmethod
    def open(cls, work: Path, seed: int) -> Study:
        """Each line twice, to see that it repeats, unless that was done before."""
        work.mkdir(parents=True, exist_ok=True)
        log = Log(work / "trials.jsonl")
        seconds = {one["line"]: one["seconds"] for one in log.all("reference")}
        references = {line: Project(work / f"reference-{line}") for line in LINES}
        for line in set(LINES) - set(seconds):
            for name in (f"reference-{line}", f"again-{line}"):
                shutil.rmtree(work / name, ignore_errors=True)
            first, one = reference_run(line, work / f"reference-{line}")
            second, two = reference_run(line, work / f"again-{line}")
            require_like(first, second, line)
            seconds[line] = max(one, two)
            log.add("reference", line=line, seconds=seconds[line])
        return cls(work, log, seed, references, seconds)

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """An empty folder, kept if the trial surprised."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        except UntriedError:
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)

    def kill(self, line: str, count: int) -> None:
        """Runs of a line until `count` were killed."""
        done = [one for one in self.log.all("kill") if one["line"] == line]
        killed = sum(one["killed"] is not None for one in done)
        for number in range(len(done), MOST_EARLY * count):
            if killed >= count:
                return
            killed += int(self._killed(line, number))

    def _killed(self, line: str, number: int) -> bool:
        folder = self.work / f"kill-{line}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        like, seconds = self.references[line], self.seconds[line]
        found = killed_run(line, number, self.seed, folder, like=like, seconds=seconds)
        self.log.add("kill", line=line, killed=None if found is None else found.to_json())
        if found is None or not found.faults:
            shutil.rmtree(folder)
        return found is not None

    def try_fault(self, fault: Fault) -> None:
        done = {one["number"] for one in self.log.all("trial") if one["fault"] == fault.key}
        for number in set(range(fault.trials)) - done:
            started = time.perf_counter()
            outcome, detail = self._tried(fault, number)
            seconds = time.perf_counter() - started
            self.log.add("trial", fault=fault.key, number=number, outcome=outcome,
                         detail=detail.replace(f"{self.work}/", ""), seconds=seconds)  # fmt: skip

    def _tried(self, fault: Fault, number: int) -> tuple[str, str]:
        """(as expected, surprise or untried; what was seen)"""
        try:
            with self.folder(f"{fault.key.replace(' ', '-')}-{number}") as folder:
                return "expected", fault.try_it(Place(folder, self.references), number)
        except UntriedError as error:
            return "untried", str(error)
        except SurpriseError as error:
            return "surprise", str(error)
        except (OSError, KeyError, ValueError, IndexError):  # what came out has another form
            return "surprise", traceback.format_exc(limit=3)[-600:]

    def result(self) -> dict[str, Any]:
        trials, kills = self.log.all("trial"), self.log.all("kill")
        return {
            "environment": environment(),
            "seed": self.seed,
            "commits": self.log.commits(),
            "kills": {
                line: {
                    "reference_s": self.seconds[line],
                    "ended_before": sum(
                        one["line"] == line and one["killed"] is None for one in kills
                    ),
                    "runs": [one["killed"] for one in kills if one["line"] == line
                             and one["killed"] is not None],
                }
                for line in LINES
            },
            "faults": [
                {**{k: v for k, v in asdict(fault).items() if k != "try_it"},
                 "found": sorted((t for t in trials if t["fault"] == fault.key),
                                 key=lambda trial: trial["number"])}
                for fault in FAULTS
            ],
        }  # fmt: skip


def surprises(result: dict[str, Any]) -> int:
    """Trials and kills that did not end as they should."""
    found = [trial for fault in result["faults"] for trial in fault["found"]]
    killed = [Kill(**one) for line in result["kills"].values() for one in line["runs"]]
    return sum(t["outcome"] == "surprise" for t in found) + sum(bool(k.faults) for k in killed)


def write_page() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(_rendered(), encoding="utf-8")


def _rendered() -> str:
    return render(*(json.loads((RESULTS / name).read_text("utf-8")) for name in (RESULT, FUZZ)))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="where trials run and are noted")
    parser.add_argument("--kills", type=int, default=KILLS, help="runs to kill, of each line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="groups, faults and lines, by commas; every line: kill")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--no-result", action="store_true", help="write no result file")
    chosen = parser.parse_args()
    if chosen.check:
        fresh = PAGE.read_text(encoding="utf-8") == _rendered()
        print(f"{PAGE.name} {'agrees with the result' if fresh else 'is stale'}")
        return int(not fresh)
    if chosen.render:
        write_page()
        return 0
    if chosen.work is None:
        parser.error("give --work, --render or --check")
    return _study(chosen)


def _study(chosen: argparse.Namespace) -> int:
    study = Study.open(chosen.work.resolve(), chosen.seed)
    wanted = set(chosen.only.split(",")) if chosen.only else None
    for fault in FAULTS:
        if wanted is None or {fault.key, fault.group} & wanted:
            study.try_fault(fault)
    lines = [line for line in LINES if wanted is None or {"kill", line} & wanted]
    for count in range(1, chosen.kills + 1):  # in turns: a study that is ended has both
        for line in lines:
            study.kill(line, count)
    result = study.result()
    if not chosen.no_result:
        write_result(RESULT, result)
        write_page()
    print(f"{surprises(result)} surprises")
    return int(surprises(result) > 0)


if __name__ == "__main__":
    sys.exit(main())
