"""Cold start and memory of an engine: fresh processes that load it and answer once.

`python -m targets.cold` is such a process: a JSON job on stdin, its JSON result on stdout.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from targets.base import TargetOptions
from targets.blocks import LOAD_LIMIT_S, turns
from targets.errors import EngineError
from targets.fresh import FreshProcess, serve_messages

WARM_CALLS = 20


@dataclass(frozen=True)
class ColdStart:
    """One process from its start to its first answer, and the memory that it took."""

    ready_s: float  # from starting the process to the first logits, interpreter included
    load_s: float  # of that, the runtime's import and the engine's loading
    first_call_ms: float
    warm_call_ms: float  # median of the calls after it
    before_bytes: int  # resident before the runtime was imported
    loaded_bytes: int  # resident after the first answer
    peak_bytes: int


def cold_starts(
    target: str, options: TargetOptions, engines: Mapping[str, Path], *, starts: int
) -> dict[str, list[ColdStart]]:
    """Start each engine so often, in turns; files are in the page cache from the second on."""
    found: dict[str, list[ColdStart]] = {name: [] for name in engines}
    for name in turns(list(engines), starts):
        job = {"target": target, "options": asdict(options), "engine": str(engines[name])}
        found[name].append(_start(job))
    return found


def summary(starts: list[ColdStart]) -> dict[str, Any]:
    """The median of each number, and the range of the time to the first answer."""
    medians = {
        name: float(np.median([getattr(one, name) for one in starts])) for name in asdict(starts[0])
    }
    ready = [one.ready_s for one in starts]
    whole = {name: round(value) for name, value in medians.items() if name.endswith("bytes")}
    return {**medians, **whole, "ready_range_s": [min(ready), max(ready)], "starts": len(starts)}


def _start(job: dict[str, Any]) -> ColdStart:
    # the monotonic clock is the machine's, not the process's
    started = {"started_ns": time.monotonic_ns()}
    with FreshProcess("targets.cold", name="starting") as process:
        return ColdStart(**process.ask(job | started, LOAD_LIMIT_S))


def run_job(job: Mapping[str, Any]) -> ColdStart:
    """Load the engine and answer, in this process."""
    from targets import load_target

    before, began = _status("VmRSS"), time.monotonic_ns()
    target = load_target(job["target"], TargetOptions(**job["options"]))
    with target.load(Path(job["engine"])) as engine:
        loaded = time.monotonic_ns()
        images = np.zeros(engine.input_shape, np.float32)
        engine.infer_batch(images)
        ready = time.monotonic_ns()
        resident = _status("VmRSS")
        warm = float(np.median(engine.time_ms(WARM_CALLS).ms))
    return ColdStart(
        (ready - job["started_ns"]) / 1e9,
        (loaded - began) / 1e9,
        (ready - loaded) / 1e6,
        warm,
        before,
        resident,
        _status("VmHWM"),
    )


def _status(key: str) -> int:
    """A size of this process in bytes, as the kernel counts it."""
    with Path("/proc/self/status").open(encoding="ascii") as file:
        for line in file:
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) << 10
    raise EngineError(f"the kernel does not state {key}", fix="measure on Linux")


if __name__ == "__main__":
    sys.exit(serve_messages(lambda job: asdict(run_job(job))))
