"""LPNet on five networks and two runtimes: calibrated as users do, judged on 100 other networks.

    python benchmarks/lpnet.py --work FOLDER [--only NAME...] [--out NAME.json]

Each case is a run folder: `pipeline prepare`, `trace` and `calibrate`, then 100 networks held out
that no LPNet chose, stratified by latency, measured by another process on engines of its own.
What is measured stays measured: the study goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from common import pipeline

HELD_OUT = Path(__file__).with_name("lpnet_heldout.py")
TARGETS = ("ort-cpu", "openvino-cpu")
SAMPLES, ERROR = 400, "1%"  # measurements at most, and the mean error that is enough


@dataclass(frozen=True)
class Network:
    """What is calibrated: a model with random weights, which latency does not depend on."""

    name: str
    model: str
    size: int  # pixels
    minutes: float  # of calibration at most


NETWORKS = (
    Network("resnet56", "wgates:resnet56a", 32, 15),
    Network("vgg16_bn", "wgates:vgg16_bn", 32, 15),
    Network("mobilenet_v2", "torchvision:mobilenet_v2", 224, 15),
    Network("resnet18", "torchvision:resnet18", 224, 15),
    Network("resnet50", "torchvision:resnet50", 224, 25),
)


def calibrate(network: Network, target: str, folder: Path) -> None:
    """The stages of the line, each of which knows what it has done before."""
    pipeline(
        *("prepare", str(folder), "--model", network.model, "--data", "digits"),
        *("--image-size", str(network.size), "--dense-epochs", "0", "--train-limit", "64"),
    )
    pipeline("trace", str(folder))
    limits = ("--samples", str(SAMPLES), "--lpnet-error", ERROR, "--time", str(network.minutes))
    pipeline("calibrate", str(folder), "--target", target, "--threads", "1", *limits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    names = [f"{network.name}-{target}" for network in NETWORKS for target in TARGETS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    given = parser.parse_args()
    for network in NETWORKS:
        for target in TARGETS:
            if (name := f"{network.name}-{target}") in given.only:
                calibrate(network, target, given.work / name)
                subprocess.run([sys.executable, HELD_OUT, given.work / name], check=True)


if __name__ == "__main__":
    main()
