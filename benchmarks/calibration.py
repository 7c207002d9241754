"""LPNet on five networks and two runtimes: calibrated as users do, judged on 100 other networks.

    python -m benchmarks.calibration --work FOLDER [--only CASE...]
    python -m benchmarks.calibration --work FOLDER --judge       # only what was measured before

Each case is a run folder: `pipeline prepare`, `trace` and `calibrate`, then 100 networks held out
that no LPNet chose, stratified by latency, measured while nobody else disturbed the machine, in
rounds, each by another process on engines of its own. Errors are those to the mean of a network's
rounds; how far the rounds lie apart says how well a measurement is repeated here. What is measured
stays measured: the study goes on where it was stopped, and --judge takes the rounds that are whole,
of which there must be two. Every predictor is then fitted on the same measurements and asked for
the same held-out networks. Cases that --only leaves out stay in the result file as they are; each
says which commit made it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.calibration_judged import Case, judge, transfer
from benchmarks.calibration_plots import draw
from benchmarks.common import RESULTS, environment, made, older_result, pipeline, write_result

ROOT = Path(__file__).parents[1]
TARGETS = ("ort-cpu", "openvino-cpu")
SAMPLES, ERROR = 400, "1%"  # measurements at most, and the mean error that is enough


@dataclass(frozen=True)
class Network:
    """What is calibrated: a model with random weights, which latency does not depend on."""

    name: str
    model: str
    size: int  # pixels
    minutes: float  # of calibration at most

    def cases(self, work: Path) -> dict[str, Case]:
        """Target -> its case."""
        names = {target: f"{self.name}-{target}" for target in TARGETS}
        return {target: Case(name, work / name) for target, name in names.items()}


NETWORKS = (
    Network("resnet56", "wgates:resnet56a", 32, 15),
    Network("vgg16_bn", "wgates:vgg16_bn", 32, 15),
    Network("mobilenet_v2", "torchvision:mobilenet_v2", 224, 15),
    Network("resnet18", "torchvision:resnet18", 224, 15),
    Network("resnet50", "torchvision:resnet50", 224, 25),
)
NAMES = [f"{network.name}-{target}" for network in NETWORKS for target in TARGETS]


def measure(network: Network, target: str, folder: Path) -> None:
    """The stages of the line, each of which knows what it has done before; then the judges."""
    pipeline(
        *("prepare", str(folder), "--model", network.model, "--data", "digits"),
        *("--image-size", str(network.size), "--dense-epochs", "0", "--train-limit", "64"),
    )
    pipeline("trace", str(folder))
    limits = ("--samples", str(SAMPLES), "--lpnet-error", ERROR, "--time", str(network.minutes))
    pipeline("calibrate", str(folder), "--target", target, "--threads", "1", *limits)
    held_out = [sys.executable, "-m", "benchmarks.calibration_heldout", str(folder.resolve())]
    subprocess.run(held_out, cwd=ROOT, check=True)


def judged(work: Path, chosen: list[str]) -> dict[str, Any]:
    """The result document of all chosen cases."""
    document: dict[str, Any] = {"environment": environment(), "cases": {}, "transfer": []}
    for network in NETWORKS:
        cases = {t: case for t, case in network.cases(work).items() if case.name in chosen}
        for case in cases.values():
            found = judge(case) | {"most": {"samples": SAMPLES, "minutes": network.minutes}}
            document["cases"][case.name] = found | {"made": made(document["environment"])}
            say(case.name, found)
        if len(cases) == len(TARGETS):
            one, other = cases.values()
            document["transfer"] += [transfer(one, other), transfer(other, one)]
    for found in document["transfer"]:
        print(f"{found['from']} -> {found['to']}: {found['needed']}", flush=True)
    return document


def beside_older(document: dict[str, Any], older: dict[str, Any]) -> dict[str, Any]:
    """The document with those cases of an older one that it has not."""
    cases = {**older["cases"], **document["cases"]}
    pairs = {(found["from"], found["to"]) for found in document["transfer"]}
    return {
        **document,
        "cases": {name: cases[name] for name in NAMES if name in cases},
        "transfer": [
            *(found for found in older["transfer"] if (found["from"], found["to"]) not in pairs),
            *document["transfer"],
        ],
    }


def say(name: str, found: dict[str, Any]) -> None:
    print(f"{name}: {found['samples']} samples, {found['minutes']:.1f} min, met {found['met']}")
    for method, error in found["methods"].items():
        print(
            f"  {method:24s} mean {error['mean']:6.2%}  within 5 % {error['within_5']:4.0%}  "
            f"10 % {error['within_10']:4.0%}  rank {error['spearman']:.4f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="CASE")
    parser.add_argument("--judge", action="store_true", help="measure nothing")
    parser.add_argument("--out", default="calibration.json", help="a name in benchmarks/results")
    given = parser.parse_args()
    for network in () if given.judge else NETWORKS:
        for target, case in network.cases(given.work).items():
            if case.name in given.only:
                measure(network, target, case.folder)
    torch.set_num_threads(1)
    document = judged(given.work, given.only)
    if older := older_result(given.out):
        document = beside_older(document, older)
    write_result(given.out, document)
    for path in draw(document, RESULTS):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
