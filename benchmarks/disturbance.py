"""What moves the ratio of two engines that never change: their loads, and neighbours.

Loads: where an engine's memory comes to lie is drawn with each load (`targets/loads.py`). Dense
against dense and narrow against dense, both loaded anew again and again, compared twice a load:
what differs between loads, beyond what differs within one, is luck.

Neighbours: while another process computes on the other core, in its caches or through the memory,
dense and narrow networks are slowed unequally (`calibration/pace.py`). The share is what that adds
to the log ratio, over the anchor's log slowdown times minus the log ratio.

python -m benchmarks.disturbance            # about 15 minutes, on a machine left alone
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.busy import neighbour
from benchmarks.common import environment, write_result
from benchmarks.networks import build
from calibration.candidates import Slicer
from calibration.widths import WidthVector, snap
from pipeline.models.zoo import create_model, input_size_of
from pipeline.pruning.groups import trace
from targets import load_target
from targets.base import TargetOptions
from targets.timing import Comparison, compare

MODELS = {"resnet18": "torchvision:resnet18", "vgg16_bn": "wgates:vgg16_bn"}
TARGETS = ("ort-cpu", "openvino-cpu")
WIDTHS = {"dense": 1.0, "half": 0.5, "quarter": 0.25}  # share of each group's channels
MULTIPLE = 16  # channels: no remainders in any runtime's blocks
CORE, OTHER_CORE = 0, 1
NEIGHBOURS = {
    "none": (),
    "caches": ("steady", str(OTHER_CORE)),
    "memory": ("streams", str(OTHER_CORE)),
}
LIMIT_S, PRECISION = 1.0, 0.005  # of one comparison
WITHIN = 2  # comparisons a load


@dataclass(frozen=True)
class Pair:
    """A network against the dense one."""

    target: str
    candidate: Path
    anchor: Path

    def compare(self, times: int) -> list[Comparison]:
        """One load of both, compared so often."""
        target = load_target(self.target, TargetOptions(threads=1))
        with ExitStack() as loaded:
            anchor = loaded.enter_context(target.load(self.anchor))
            candidate = loaded.enter_context(target.load(self.candidate))
            return [
                compare(candidate, anchor, precision=PRECISION, limit_s=LIMIT_S)
                for _ in range(times)
            ]


def pairs(folder: Path) -> Iterator[tuple[str, str, Pair]]:
    """Case, width and engines; weights are random, latency does not depend on them."""
    for name, spec in MODELS.items():
        size = input_size_of(spec)
        assert size is not None, spec
        model = create_model(spec, 10).eval()
        skeleton = trace(model, torch.zeros(1, 3, size, size))
        slicer, full = Slicer(skeleton), skeleton.groups.full().kept
        for target in TARGETS:
            engines = {}
            for width, share in WIDTHS.items():
                kept = snap([round(share * channels) for channels in full], full, MULTIPLE)
                onnx = slicer.at_widths(WidthVector(skeleton.groups.names, kept))
                engines[width] = build(target, onnx, folder / f"{name}-{target}-{width}")
            for width, engine in engines.items():
                yield f"{name}-{target}", width, Pair(target, engine, engines["dense"])


def luck(pair: Pair, loads: int) -> dict[str, Any]:
    """Standard deviations of the log ratio, between loads and within one."""
    logs = np.log([[found.ratio for found in pair.compare(WITHIN)] for _ in range(loads)])
    within = float(np.sqrt(np.mean(np.var(logs, axis=1, ddof=1))))
    between = float(np.var(logs.mean(axis=1), ddof=1)) - within**2 / WITHIN
    return {
        "ratio": float(np.exp(logs.mean())),
        "within": within,
        "between": math.sqrt(max(0.0, between)),
        "ratios": np.exp(logs).tolist(),
    }


def disturbed(pair: Pair, rounds: int) -> dict[str, Any]:
    """Medians over rounds, in each of which every neighbour has its turn, on a load of its own."""
    found: dict[str, list[Comparison]] = {name: [] for name in NEIGHBOURS}
    for _ in range(rounds):
        for name, arguments in NEIGHBOURS.items():
            with neighbour(arguments):
                found[name] += pair.compare(1)
    calm_ms, calm = _anchor_ms(found["none"]), float(np.median(_log_ratios(found["none"])))
    effects = {}
    for name, comparisons in found.items():
        logs = _log_ratios(comparisons)
        slowdown = math.log(_anchor_ms(comparisons) / calm_ms)
        added, exposure = float(np.median(logs)) - calm, -slowdown * calm
        effects[name] = {
            "anchor_slowdown": math.expm1(slowdown),
            "ratio_error": math.expm1(added),
            "share": added / exposure if exposure > 0.0 else None,
            "ratios": np.exp(logs).tolist(),
        }
    return effects


def _anchor_ms(comparisons: Sequence[Comparison]) -> float:
    return float(np.median([found.anchor.median_ms() for found in comparisons]))


def _log_ratios(comparisons: Sequence[Comparison]) -> NDArray[np.float64]:
    return np.log([found.ratio for found in comparisons])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--loads", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", default="disturbance.json", help="a name in benchmarks/results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not {CORE, OTHER_CORE} <= os.sched_getaffinity(0):
        raise SystemExit(f"the benchmark needs the cores {CORE} and {OTHER_CORE}")
    os.sched_setaffinity(0, {CORE})
    document: dict[str, Any] = {"environment": environment(), "loads": {}, "neighbours": {}}
    with tempfile.TemporaryDirectory() as folder:
        for case, width, pair in pairs(Path(folder)):
            found = luck(pair, given.loads)
            document["loads"][f"{case} {width}"] = found
            print(
                f"{case} {width}: ratio {found['ratio']:.3f}, luck of a load {found['between']:.2%}"
                f", within one {found['within']:.2%}",
                flush=True,
            )
            if width == "dense":
                continue
            document["neighbours"][f"{case} {width}"] = effects = disturbed(pair, given.rounds)
            for name, effect in effects.items():
                print(
                    f"  neighbour {name}: dense {effect['anchor_slowdown']:+.0%}, "
                    f"ratio {effect['ratio_error']:+.1%}, share {effect['share']}",
                    flush=True,
                )
    write_result(given.out, document)


if __name__ == "__main__":
    main()
