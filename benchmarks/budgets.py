"""Are budgets hit? Three networks, five budgets each, two targets; short training.

    python -m benchmarks.budgets --work FOLDER [--only PART] [--small] [--out budgets.json]

A network is prepared, traced and calibrated once a target; its budgets go from 0.85x down to the
lowest that `pipeline prune` advises where it refuses one. Each run is `pipeline prune`, in one run
folder for all budgets of a case, so that groups are asked for their losses once. Its plans are then
built anew and timed in fresh processes beside the dense engine: the first plan that was tried, and
the one that was taken. A line of FOLDER/runs.jsonl is one run; what is there is not run again. Runs
that were not made anew stay in the result file as they are if as much was trained and their case
has the same budgets; each says which commit made it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.budgets_judged import Judge
from benchmarks.common import environment, made, older_result, pipeline, start_from, write_result
from pipeline.budget import advised

TARGETS = ("ort-cpu", "openvino-cpu")
HIGHEST, COUNT = 0.85, 5
WASTED = 0.03  # a plan that much below its budget wastes capacity
ERROR, MISSED = "error: ", "no plan met"  # how a failure begins; one after the last round


@dataclass(frozen=True)
class Network:
    name: str
    model: str
    size: int  # pixels


@dataclass(frozen=True)
class Effort:
    """How much is trained and measured."""

    images: int
    gate_epochs: int
    samples: int
    processes: int  # at most
    seconds: float  # of a timed block


NETWORKS = (
    Network("resnet20", "wgates:resnet20", 32),
    Network("resnet18", "torchvision:resnet18", 64),
    Network("mobilenet_v2", "torchvision:mobilenet_v2", 96),
)
FULL = Effort(images=640, gate_epochs=5, samples=300, processes=48, seconds=0.3)
SMALL = Effort(images=128, gate_epochs=3, samples=40, processes=2, seconds=0.1)


@dataclass(frozen=True)
class Case:
    """One network on one target: a calibrated run folder, and one that is pruned."""

    network: Network
    target: str
    work: Path
    effort: Effort

    @property
    def name(self) -> str:
        return f"{self.network.name}-{self.target}"

    @property
    def folder(self) -> Path:
        return self.work / self.name

    @property
    def pruned(self) -> Path:
        return self.work / f"{self.name}-pruned"

    def calibrated(self) -> dict[str, Any]:
        """Prepare, trace and calibrate; each knows what it has done before."""
        net, folder, effort = self.network, str(self.folder), self.effort
        pipeline(
            *("prepare", folder, "--model", net.model, "--data", "digits"),
            *("--image-size", str(net.size), "--train-limit", str(effort.images)),
            *("--dense-epochs", "2", "--dense-lr", "0.02", "--device", "cpu"),
        )
        pipeline("trace", folder)
        samples = ("--samples", str(effort.samples))
        pipeline("calibrate", folder, "--target", self.target, "--threads", "1", *samples)
        text = (self.folder / "calibrate" / "calibration.json").read_text(encoding="utf-8")
        found: dict[str, Any] = json.loads(text)
        return found

    def budgets(self) -> list[float]:
        """Shares of the dense latency, from high to just above the floor."""
        lowest = advised(self.calibrated()["floor"]["ratio"])
        return [round(float(share), 3) for share in np.linspace(HIGHEST, lowest, COUNT)]

    def judge(self) -> Judge:
        effort = self.effort
        return Judge.of(
            self.folder, self.target, processes=effort.processes, seconds=effort.seconds
        )


def prune(case: Case, budget: float) -> str:
    """What `pipeline prune` complained about."""
    folder, script = case.pruned, Path(sys.executable).with_name("pipeline")
    options = ("--budget", f"{budget:g}x", "--gate-epochs", str(case.effort.gate_epochs))
    done = subprocess.run(
        [script, "prune", str(folder), *options], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{folder}: exit code {done.returncode}\n{done.stderr}")
    errors = [line for line in done.stderr.splitlines() if line.startswith(ERROR)]
    return errors[-1].removeprefix(ERROR) if done.returncode else ""


def run(case: Case, budget: float) -> dict[str, Any]:
    """One line of the result."""
    complaint = prune(case, budget)
    line: dict[str, Any] = {"case": case.name, "budget": budget, "complaint": complaint}
    if complaint:
        return line
    found = json.loads((case.pruned / "prune" / "prune.json").read_text(encoding="utf-8"))
    rounds = found["rounds"]
    taken = [item["kept"] for item in found["widths"]]
    gates = [epoch for epoch in found["history"] if "multiplier" in epoch]
    return line | {
        "rounds": rounds,
        "gates_predicted_over_aim": gates[-1]["predicted"] / found["aim_ms"] if gates else None,
        "judged": case.judge().judge({"first": rounds[0]["kept"], "taken": taken}),
    }


def missed(line: dict[str, Any]) -> bool:
    """Whether no plan met the budget in all rounds."""
    return str(line["complaint"]).startswith(MISSED)


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of the runs that were not refused before any training."""
    reached = [line for line in lines if not line["complaint"]]
    late = [line for line in lines if missed(line)]
    over = {
        which: np.array([line["judged"][which]["ratio"] / line["budget"] for line in reached])
        for which in ("first", "taken")
    }
    tried = len(reached) + len(late)
    at_most = [line["rounds"][-1]["round"] for line in reached]
    taken = over["taken"].tolist()
    return {
        "runs": len(lines),
        "of": len(NETWORKS) * len(TARGETS) * COUNT,
        "missed": [f"{line['case']} {line['budget']:g}x" for line in late],
        "refused": [
            f"{line['case']} {line['budget']:g}x"
            for line in lines
            if line["complaint"] and not missed(line)
        ],
        "first_try_met": share(over["first"] <= 1, tried),
        "taken_met": share(over["taken"] <= 1, tried),
        "taken_wasteful": share(over["taken"] < 1 - WASTED, tried),
        "in_one_round": share(np.array(at_most) == 1, tried),
        "most_rounds": max(at_most, default=None),
        "taken_over_budget": {
            "quartiles": np.quantile(taken, [0, 0.25, 0.5, 0.75, 1]).tolist() if taken else None
        },
    }


def share(those: NDArray[np.bool_], of: int) -> float | None:
    return float(those.sum() / of) if of else None


def beside_older(lines: list[dict[str, Any]], older: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs, and those of an older result that they do not replace.

    Budgets come from a calibration: a case that has others now loses its older runs.
    """
    now, before = ({(run["case"], run["budget"]) for run in runs} for runs in (lines, older))
    moved = {case for case, _ in now - before}
    stays = [
        run for run in older if run["case"] not in moved and (run["case"], run["budget"]) not in now
    ]
    return sorted([*lines, *stays], key=lambda run: (run["case"], -run["budget"]))


def lines_of(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cases(work: Path, effort: Effort, only: str) -> Iterator[Case]:
    for network in NETWORKS:
        for target in TARGETS:
            case = Case(network, target, work, effort)
            if only in case.name:
                yield case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="", help="a part of NETWORK-TARGET")
    parser.add_argument("--small", action="store_true", help="hardly any training: a trial")
    parser.add_argument("--count", type=int, default=COUNT, help="budgets a case")
    parser.add_argument("--out", help="name of a result file in benchmarks/results")
    given = parser.parse_args()
    effort = SMALL if given.small else FULL
    given.work.mkdir(parents=True, exist_ok=True)
    log = given.work / "runs.jsonl"
    for case in cases(given.work, effort, given.only):
        done = {(line["case"], line["budget"]) for line in lines_of(log)}
        budgets = [b for b in case.budgets()[: given.count] if (case.name, b) not in done]
        if not budgets:
            continue
        shutil.rmtree(case.pruned, ignore_errors=True)  # its options may be those of older code
        start_from(case.folder, case.pruned)
        for budget in budgets:
            line = {**run(case, budget), "made": made(environment())}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    lines = lines_of(log)
    print(json.dumps(summary(lines), indent=1))
    if given.out:
        alike = {"effort": asdict(effort)}
        lines = beside_older(lines, older_result(given.out, **alike).get("runs", []))
        found = {"environment": environment(), **alike, "summary": summary(lines), "runs": lines}
        write_result(given.out, found)


if __name__ == "__main__":
    main()
