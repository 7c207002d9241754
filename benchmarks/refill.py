"""What a pruned network's calls cost after the dense network's, which emptied the caches.

    python -m benchmarks.refill

Networks with random weights and all groups at a share of their channels. First by call: the n-th
one after four of the dense engine. Then the ratio to the dense engine as `compare` has it, with one
call and with as many as it takes to refill the caches before an engine's calls count, over that of
fresh processes with turns of a tenth of a second, as for a verdict; interleaved in rounds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import environment, write_result
from benchmarks.networks import CLASSES
from calibration.candidates import Slicer
from calibration.measure import Bench
from calibration.widths import ChannelGroups, WidthVector
from pipeline.models.zoo import create_model
from pipeline.pruning.groups import trace
from targets import load_target, timing
from targets.base import Target, TargetOptions
from targets.blocks import measure_blocks
from targets.statistics import bootstrap_ci95
from targets.timing import warm_up

LOADS, TIMES, DENSE_CALLS, CALLS = 3, 12, 4, 40
SETTLED = 16  # calls after which the rest is the same
ROUNDS, PROCESSES, SECONDS = 6, 6, 0.3
REFILLS = (1, timing.REFILL_CALLS)


@dataclass(frozen=True)
class Case:
    model: str
    size: int  # pixels
    share: float  # of the channels that are kept
    target: str

    @property
    def name(self) -> str:
        return f"{self.model.partition(':')[2]}, {self.share:g} of its channels, {self.target}"

    def pruned(self) -> tuple[Slicer, WidthVector]:
        """The dense network with random weights, and what is left of it."""
        model = create_model(self.model, CLASSES).eval()
        slicer = Slicer(trace(model, torch.zeros(1, 3, self.size, self.size)))
        return slicer, _at_share(slicer.skeleton.groups, self.share)


CASES = (
    Case("wgates:resnet20", 32, 0.5, "ort-cpu"),
    Case("torchvision:mobilenet_v2", 96, 0.5, "ort-cpu"),
    Case("torchvision:resnet18", 64, 0.5, "ort-cpu"),
    Case("torchvision:resnet18", 64, 0.25, "ort-cpu"),
    Case("torchvision:mobilenet_v2", 96, 0.5, "openvino-cpu"),
    Case("torchvision:resnet18", 64, 0.5, "openvino-cpu"),
)


def main() -> None:
    torch.manual_seed(0)
    write_result(
        "refill.json",
        {
            "environment": environment("openvino-cpu"),
            "loads": LOADS,
            "times": TIMES,
            "dense_calls": DENSE_CALLS,
            "rounds": ROUNDS,
            "processes": PROCESSES,
            "seconds": SECONDS,
            "cases": {case.name: measured(case) for case in CASES},
        },
    )


def measured(case: Case) -> dict[str, Any]:
    """Both parts of one case."""
    slicer, widths = case.pruned()
    target = load_target(case.target, TargetOptions(threads=1))
    with tempfile.TemporaryDirectory() as folder:
        onnx = {"dense": slicer.skeleton.onnx_bytes, "pruned": slicer.at_widths(widths)}
        dense, pruned = (
            target.build(model, Path(folder) / f"{name}{target.engine_suffix}").engine
            for name, model in onnx.items()
        )
        by_call = _by_call(target, dense, pruned)
        ratios = list(_ratios(Bench(target, slicer, dense), widths, pruned))
    found = {
        "case": asdict(case),
        "bytes": {name: len(model) for name, model in onnx.items()},  # nearly all are weights
        "ms_by_call": by_call.tolist(),
        "settled_ms": float(np.median(by_call[SETTLED:])),
        "rounds": ratios,
        "over_fresh_processes": {str(n): _over(ratios, str(n)) for n in REFILLS},
    }
    print(case.name, json.dumps(found["over_fresh_processes"]), flush=True)
    return found


def _at_share(groups: ChannelGroups, share: float) -> WidthVector:
    """That share of the channels of all groups that can be pruned, in multiples of 8."""
    prunable = {group.name for group in groups.prunable}
    full = groups.full()
    kept = (
        max(8, round(share * width / 8) * 8) if name in prunable else width
        for name, width in zip(full.groups, full.kept, strict=True)
    )
    return WidthVector(full.groups, tuple(kept))


def _by_call(target: Target, dense: Path, pruned: Path) -> NDArray[np.float64]:
    """(CALLS,) ms: the median over loads and times of each call after the dense engine's."""
    found = []
    for _ in range(LOADS):
        with target.load(pruned) as ours, target.load(dense) as theirs:
            warm_up(ours)
            warm_up(theirs)
            for _ in range(TIMES):
                theirs.time_ms(DENSE_CALLS)
                found.append(ours.time_ms(CALLS).ms)
    return np.asarray(np.median(found, axis=0))


def _ratios(bench: Bench, widths: WidthVector, pruned: Path) -> Iterator[dict[str, float]]:
    """Each round's ratio by `compare` with so many calls first, and by fresh processes."""
    for _ in range(ROUNDS):
        found = {}
        for calls in REFILLS:
            with mock.patch.object(timing, "REFILL_CALLS", calls):
                found[str(calls)] = bench.compare(widths, precision=0.006).ratio
        blocks = measure_blocks(
            bench.target.name,
            bench.target.options,
            {"pruned": pruned, "dense": bench.anchor},
            processes=PROCESSES,
            seconds_per_block=SECONDS,
        )
        yield found | {"fresh": blocks.ratio("pruned", "dense")[0]}


def _over(rounds: list[dict[str, float]], calls: str) -> dict[str, Any]:
    shares = [found[calls] / found["fresh"] for found in rounds]
    return {"median": float(np.median(shares)), "ci95": list(bootstrap_ci95(shares))}


if __name__ == "__main__":
    main()
