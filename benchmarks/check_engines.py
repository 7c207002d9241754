"""Networks for `benchmarks/check.py` whose true slowdown against a base was measured, not assumed.

An engine is slowed by a 1x1 convolution to some channels at its end. How many make 3, 5 and 10 %
depends on the machine, so several are timed, and the true ratio of the chosen ones is measured
long.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.networks import build, small_cnn
from targets.base import TargetOptions
from targets.blocks import BlockRun, measure_blocks

TARGET = "ort-cpu"
WIDTH, SIZE = 64, 96
SHARES = {"3%": 0.03, "5%": 0.05, "10%": 0.10}
STEP = 16
EXTRA = tuple(range(STEP, 529, STEP))
LOOK_PROCESSES, LOOK_SECONDS = 4, 0.2
TRUTH_SECONDS = 1.0
BEYOND = 0.003  # so much beyond its share, lest noise in the choice makes it less


def prepare(folder: Path, truth_processes: int) -> dict[str, Any]:
    """Write base.onnx, same.onnx and the slowed networks; return their true ratios.

    Resumes: what stands in the folder is kept.
    """
    path = folder / "truth.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("base", "same"):
        (folder / f"{name}.onnx").write_bytes(small_cnn(WIDTH, size=SIZE))
    chosen = _choose(folder)
    while True:
        run = _truth(folder, chosen, truth_processes)
        slowdowns = {name: run.ratio(name, "base")[0] - 1 for name in chosen}
        print("true slowdowns:", slowdowns, chosen, flush=True)
        if all(slowdowns[name] >= SHARES[name] for name in chosen):
            break
        chosen = _corrected(chosen, slowdowns)  # the choice was a short look
    ratios = {name: run.ratio(name, "base") for name in run.blocks if name != "base"}
    truth = {
        "extra_channels": chosen,
        "slowdown": {name: ratio - 1 for name, (ratio, _) in ratios.items()},
        "slowdown_ci95": {name: [low - 1, high - 1] for name, (_, (low, high)) in ratios.items()},
        "base_ms": run.median_ms("base"),
        "processes": run.processes,
        "doubts": run.doubts(),
    }
    path.write_text(json.dumps(truth, indent=1))
    return truth


def _truth(folder: Path, chosen: dict[str, int], processes: int) -> BlockRun:
    """Write the slowed networks and time all of them long."""
    for name, extra in chosen.items():
        (folder / f"{name}.onnx").write_bytes(small_cnn(WIDTH, size=SIZE, extra=extra))
    networks = {name: folder / f"{name}.onnx" for name in ("base", "same", *chosen)}
    return _timed(networks, folder, processes=processes, seconds=TRUTH_SECONDS)


def _corrected(chosen: dict[str, int], slowdowns: dict[str, float]) -> dict[str, int]:
    """More channels for the engines that are not slow enough, by the slope of all of them."""
    slope, _ = np.polyfit([chosen[name] for name in SHARES], [slowdowns[n] for n in SHARES], 1)
    found = dict(chosen)
    for name, share in SHARES.items():
        if (short := share - slowdowns[name]) > 0:
            steps = max(1, math.ceil((short + BEYOND) / (slope * STEP)))
            found[name] = _reachable(name, chosen[name] + steps * STEP)
    return found


def _reachable(name: str, extra: int) -> int:
    if extra > EXTRA[-1]:
        raise SystemExit(f"no engine is {name} slower: add channels to EXTRA")
    return extra


def _choose(folder: Path) -> dict[str, int]:
    """The fewest extra channels that slow the base down by each share, from a line through all."""
    networks = {"base": folder / "base.onnx"}
    for extra in EXTRA:
        networks[str(extra)] = folder / f"extra{extra}.onnx"
        networks[str(extra)].write_bytes(small_cnn(WIDTH, size=SIZE, extra=extra))
    run = _timed(networks, folder, processes=LOOK_PROCESSES, seconds=LOOK_SECONDS)
    slowdowns = {extra: run.ratio(str(extra), "base")[0] - 1 for extra in EXTRA}
    print("slowdown by extra channels:", {k: round(v, 4) for k, v in slowdowns.items()}, flush=True)
    for path in folder.glob("extra*.onnx"):
        path.unlink()
    slope, start = np.polyfit(EXTRA, [slowdowns[extra] for extra in EXTRA], 1)
    return {
        name: _reachable(name, STEP * max(1, math.ceil((share + BEYOND - start) / slope / STEP)))
        for name, share in SHARES.items()
    }


def _timed(networks: dict[str, Path], folder: Path, *, processes: int, seconds: float) -> BlockRun:
    engines = {
        name: build(TARGET, path.read_bytes(), folder / f"engine-{path.stem}")
        for name, path in networks.items()
    }

    def tell(run: BlockRun) -> bool:
        print(f"truth: {run.processes} of {processes} processes", flush=True)
        return False

    run = measure_blocks(
        TARGET,
        TargetOptions(threads=1),
        engines,
        processes=processes,
        seconds_per_block=seconds,
        stop=tell,
    )
    for engine in engines.values():
        engine.unlink()
    return run
