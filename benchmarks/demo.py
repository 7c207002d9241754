"""The README's worked run: the demo command from an empty folder, with its time and memory.

python -m benchmarks.demo --runs 3
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.common import environment, pipeline, write_result

DEMO = (
    *("--target", "ort-cpu", "--model", "wgates:resnet20"),
    *("--data", "digits", "--budget", "0.6x"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs, with seeds 0, 1, ...")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [_run(Path(folder) / f"seed{seed}", seed) for seed in range(options.runs)]
    document = {
        "command": " ".join(("pipeline", "run", *DEMO)),
        "environment": environment(),
        "verdicts": [run["certificate"]["verdict"] for run in runs],
        "median_seconds": statistics.median(run["seconds"] for run in runs),
        "peak_process_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "runs": runs,
    }
    write_result("demo.json", document)


def _run(folder: Path, seed: int) -> dict[str, Any]:
    started = time.perf_counter()
    pipeline("run", *DEMO, "--seed", str(seed), "--out", str(folder))
    seconds = time.perf_counter() - started
    certificate = json.loads((folder / "verify" / "certificate.json").read_text())
    calibration = json.loads((folder / "calibrate" / "calibration.json").read_text())
    prune = json.loads((folder / "prune" / "prune.json").read_text())
    return {
        "seed": seed,
        "seconds": seconds,
        "certificate": certificate,
        "held_out": calibration["held_out"],
        "floor": calibration["floor"],
        "rounds": prune["rounds"],
        "widths": prune["widths"],
        "stage_seconds": _stage_seconds(folder),
    }


def _stage_seconds(folder: Path) -> dict[str, float]:
    """Seconds of each stage, from the run's own events."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    began: dict[str, datetime] = {}
    took: dict[str, float] = {}
    for event in events:
        at = datetime.fromisoformat(event["at"])
        if event["event"] == "stage started":
            began[event["stage"]] = at
        elif event["event"] == "stage finished":
            took[event["stage"]] = (at - began[event["stage"]]).total_seconds()
    return took


if __name__ == "__main__":
    main()
