"""Latency for a verdict: blocks of calls from fresh processes, engines interleaved ABBA.

`python -m targets.blocks` is such a process: one JSON job on stdin, one JSON result on stdout.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from targets import load_target
from targets.base import Engine, Target, TargetOptions
from targets.errors import FingerprintError
from targets.fingerprint import Fingerprint
from targets.fresh import ask_fresh_process, serve_job
from targets.samples import Samples
from targets.statistics import bootstrap_ci95, percentile_of
from targets.timing import calls_lasting, warm_up

SLICE_S = 0.1  # an engine's turn; a drift slower than some turns hits all engines alike
LOAD_LIMIT_S = 300.0  # for starting a process, loading and warming up
FEW_PROCESSES = 5
MAX_BLOCK_SPREAD = 0.05  # of block medians, range over median


@dataclass(frozen=True)
class OtherEngine:
    """An engine of another target, to be timed in the same processes."""

    path: Path
    target: str
    options: TargetOptions


@dataclass(frozen=True)
class BlockRun:
    """Blocks of calls: for each engine one block a process, so blocks pair across engines."""

    fingerprint: Fingerprint
    blocks: Mapping[str, tuple[Samples, ...]]  # engine -> one entry a process

    def __post_init__(self) -> None:
        if len({len(of_engine) for of_engine in self.blocks.values()}) != 1:
            raise ValueError("every engine needs one block a process, and at least one engine")
        object.__setattr__(self, "blocks", MappingProxyType(dict(self.blocks)))

    @property
    def processes(self) -> int:
        """How many fresh processes ran."""
        return len(next(iter(self.blocks.values())))

    def pooled_ms(self, name: str) -> NDArray[np.float64]:
        """Clean calls of all blocks of one engine in ms, (n,)."""
        return np.concatenate([block.clean_ms for block in self.blocks[name]])

    def block_medians_ms(self, name: str) -> NDArray[np.float64]:
        """The median of each block's clean calls, (processes,)."""
        return np.array([block.median_ms() for block in self.blocks[name]])

    def median_ms(self, name: str) -> float:
        """The median of the block medians."""
        return float(np.median(self.block_medians_ms(name)))

    def ci95_ms(self, name: str) -> tuple[float, float]:
        """The 95 % interval of `median_ms`, by bootstrap over blocks."""
        return bootstrap_ci95(self.block_medians_ms(name))

    def percentile_ms(self, name: str, percentile: float) -> float:
        """A percentile of the pooled clean calls; ValueError if too few (p99: under 299)."""
        return percentile_of(self.pooled_ms(name), percentile)

    def ratio(self, name: str, other: str) -> tuple[float, tuple[float, float]]:
        """`name` over `other`, paired by process: median and its 95 % bootstrap interval."""
        ratios = self.block_medians_ms(name) / self.block_medians_ms(other)
        return float(np.median(ratios)), bootstrap_ci95(ratios)

    def doubts(self) -> tuple[str, ...]:
        """Reasons to distrust these blocks, in words; empty if none."""
        found: list[str] = []
        if self.processes < FEW_PROCESSES:
            found.append(f"only {self.processes} of at least {FEW_PROCESSES} processes ran")
        for name, blocks in self.blocks.items():
            medians = self.block_medians_ms(name)
            spread = float(np.ptp(medians) / np.median(medians))
            if spread > MAX_BLOCK_SPREAD:
                found.append(f"{name}: the medians of its blocks range over {spread:.0%}")
            pooled = Samples.concatenate(blocks)
            found += (f"{name}: {doubt}" for doubt in pooled.doubts())
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """A dict that `json.dumps` accepts, with every raw sample."""
        blocks = {name: [block.to_json() for block in of] for name, of in self.blocks.items()}
        return {"fingerprint": self.fingerprint.to_json(), "blocks": blocks}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        blocks = {name: tuple(map(Samples.from_json, of)) for name, of in record["blocks"].items()}
        return cls(Fingerprint.from_json(record["fingerprint"]), blocks)

    def joined(self, later: BlockRun) -> BlockRun:
        """These blocks and later ones; FingerprintError if they may not be compared."""
        differences = self.fingerprint.differences(later.fingerprint)
        if differences:
            raise FingerprintError(f"blocks do not compare: {'; '.join(differences)}")
        names = self.blocks.keys() | later.blocks.keys()
        pairs = {name: (self.blocks[name], later.blocks[name]) for name in sorted(names)}
        return BlockRun(self.fingerprint, {name: a + b for name, (a, b) in pairs.items()})


def measure_blocks(
    target_name: str,
    options: TargetOptions,
    engines: Mapping[str, Path | OtherEngine],
    *,
    processes: int,
    seconds_per_block: float,
    stop: Callable[[BlockRun], bool] | None = None,
) -> BlockRun:
    """Time built engines in up to `processes` fresh processes, one after the other.

    `stop` sees the run so far after each process, to show progress and to end early by True. The
    fingerprint is that of `target_name`, whatever other targets' engines are timed beside it.
    """
    if processes < 1 or not engines:
        raise ValueError("blocks need at least one process and one engine")
    own = OtherEngine(Path(), target_name, options)
    each = {
        n: e if isinstance(e, OtherEngine) else replace(own, path=e) for n, e in engines.items()
    }
    job = {
        "target": target_name,
        "options": asdict(options),
        "engines": {name: _described(engine) for name, engine in each.items()},
        "seconds": seconds_per_block,
    }
    names = list(engines)
    run: BlockRun | None = None
    for index in range(processes):
        # who goes first alternates, so that going first favours nobody
        order = names if index % 2 == 0 else names[::-1]
        latest = _in_fresh_process(job | {"order": order})
        run = latest if run is None else run.joined(latest)
        if stop is not None and stop(run):
            break
    assert run is not None
    return run


def _in_fresh_process(job: Mapping[str, Any]) -> BlockRun:
    limit_s = LOAD_LIMIT_S + 10 * job["seconds"] * len(job["engines"])
    found = ask_fresh_process("targets.blocks", job, limit_s=limit_s, name="timing")
    return BlockRun.from_json(found)


def run_job(job: Mapping[str, Any]) -> BlockRun:
    """Load, warm up and time the engines of one job in this process: one block each."""
    targets: dict[str, Target] = {}
    target = _target(job, targets)
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(_target(found, targets).load(Path(found["path"])))
            for name, found in ((name, job["engines"][name]) for name in job["order"])
        }
        for engine in engines.values():
            warm_up(engine)
        turns = _timed_turns(engines, seconds=job["seconds"])
    blocks = {name: (Samples.concatenate(parts),) for name, parts in sorted(turns.items())}
    return BlockRun(target.fingerprint(), blocks)


def _described(engine: OtherEngine) -> dict[str, Any]:
    return asdict(engine) | {"path": str(engine.path.resolve())}


def _target(described: Mapping[str, Any], known: dict[str, Target]) -> Target:
    """The target of an engine or job; one for all that are alike."""
    key = json.dumps([described["target"], described["options"]])
    if key not in known:
        known[key] = load_target(described["target"], TargetOptions(**described["options"]))
    return known[key]


def _timed_turns(engines: Mapping[str, Engine], *, seconds: float) -> dict[str, list[Samples]]:
    """Give each engine `seconds` in short turns: forwards, backwards, forwards, ..."""
    turns_each = 2 * max(1, math.ceil(seconds / (2 * SLICE_S)))
    turn_ms = 1e3 * seconds / turns_each
    calls = {
        name: calls_lasting(turn_ms, engine.time_ms(3), fewest=1, most=1_000_000)
        for name, engine in engines.items()
    }
    turns: dict[str, list[Samples]] = {name: [] for name in engines}
    for index in range(turns_each):
        for name in list(engines) if index % 2 == 0 else list(engines)[::-1]:
            turns[name].append(engines[name].time_ms(calls[name]))
    return turns


if __name__ == "__main__":
    sys.exit(serve_job(lambda job: run_job(job).to_json()))
