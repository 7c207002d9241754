"""Latency for a verdict: blocks of calls from fresh processes, engines interleaved ABBA.

Each engine has a process of its own, as where it is served: beside another one its memory comes to
lie elsewhere, which is worth more than many a slowdown that `check` is to find. `python -m
targets.blocks` is such a process, one JSON message a line on stdin, one answer a line on stdout.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from targets import load_target
from targets.base import Engine, TargetOptions
from targets.errors import FingerprintError
from targets.fingerprint import Fingerprint
from targets.fresh import FreshProcess, serve_messages
from targets.gpu.cuda import contexts_here
from targets.samples import Samples
from targets.statistics import bootstrap_ci95, percentile_of
from targets.timing import Turn, calls_lasting, warm_up

SLICE_S = 0.1  # an engine's turn; a drift slower than some turns hits all engines alike
LOAD_LIMIT_S = 300.0  # for starting a process and loading an engine, or for warming it up
FEW_PROCESSES = 5
MAX_BLOCK_SPREAD = 0.05  # of block medians, range over median


@dataclass(frozen=True)
class OtherEngine:
    """An engine of another target, to be timed beside those of the run's own."""

    path: Path
    target: str
    options: TargetOptions


@dataclass(frozen=True)
class BlockRun:
    """Blocks of calls: for each engine one block a round, so blocks pair across engines."""

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

    def ratios(self, name: str, other: str) -> NDArray[np.float64]:
        """`name` over `other`, the medians of blocks paired by process, (processes,)."""
        return self.block_medians_ms(name) / self.block_medians_ms(other)

    def ratio(self, name: str, other: str) -> tuple[float, tuple[float, float]]:
        """The median of `ratios` and its 95 % bootstrap interval."""
        ratios = self.ratios(name, other)
        return float(np.median(ratios)), bootstrap_ci95(ratios)

    def beside(self, companions: int) -> BlockRun:
        """The same, where so many more of the GPU's other processes were known and idle."""
        blocks = {n: tuple(b.beside(companions) for b in of) for n, of in self.blocks.items()}
        return BlockRun(self.fingerprint, blocks)

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
    """Time built engines in up to `processes` fresh processes each, in rounds of one of each.

    `stop` sees the run so far after each round, to show progress and to end early by True. The
    fingerprint is that of `target_name`, whatever other targets' engines are timed beside it.
    """
    own = OtherEngine(Path(), target_name, options)
    each = {
        n: e if isinstance(e, OtherEngine) else replace(own, path=e) for n, e in engines.items()
    }
    if processes < 1 or target_name not in {engine.target for engine in each.values()}:
        raise ValueError("blocks need at least one process and one engine of the target")
    names = list(each)
    run: BlockRun | None = None
    for index in range(processes):
        # who goes first alternates, so that going first favours nobody
        order = names if index % 2 == 0 else names[::-1]
        latest = _round({name: each[name] for name in order}, target_name, seconds_per_block)
        run = latest if run is None else run.joined(latest)
        if stop is not None and stop(run):
            break
    assert run is not None
    return run


def _round(engines: Mapping[str, OtherEngine], target_name: str, seconds: float) -> BlockRun:
    """One block of each engine, in processes that take turns: forwards, backwards, forwards, ..."""
    turns_each = 2 * max(1, math.ceil(seconds / (2 * SLICE_S)))
    turn_ms = 1e3 * seconds / turns_each
    limit_s = LOAD_LIMIT_S + 10 * seconds
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(FreshProcess("targets.blocks", name="timing"))
            for name in engines
        }
        for name, process in started.items():
            process.tell({"load": _described(engines[name])})
        prints = [Fingerprint.from_json(process.answer(limit_s)) for process in started.values()]
        for process in started.values():
            process.ask({"warm up": turn_ms}, limit_s)
        for name in turns(list(engines), turns_each):
            started[name].ask({"time": None}, limit_s)
        timed = {
            name: Samples.from_json(process.ask({"tell": None}, limit_s))
            for name, process in sorted(started.items())
        }
    fingerprint = next(found for found in prints if found.target == target_name)
    # of our own processes, while one takes its turn: the other engines', and this one
    idle = len(engines) - 1 + contexts_here()
    return BlockRun(fingerprint, {name: (found,) for name, found in timed.items()}).beside(idle)


def _described(engine: OtherEngine) -> dict[str, Any]:
    return asdict(engine) | {"path": str(engine.path.resolve())}


def turns(names: Sequence[str], turns_each: int) -> Iterator[str]:
    """Whose turn it is, so that a drift hits all alike: ABBA, ABBA, ..."""
    for index in range(turns_each):
        yield from names if index % 2 == 0 else names[::-1]


class _Served:
    """In a fresh process: one engine, loaded as a server loads it, timed turn by turn."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._engine: Engine | None = None
        self._turn = Turn(0, 0)
        self._timed: list[Samples] = []

    def answer(self, message: Mapping[str, Any]) -> Any:
        """To "load", the fingerprint; to "tell", all samples; nothing to "warm up" and "time"."""
        [(verb, noun)] = message.items()
        if verb == "load":
            target = load_target(noun["target"], TargetOptions(**noun["options"]))
            self._engine = self._stack.enter_context(target.load(Path(noun["path"])))
            return target.fingerprint().to_json()
        assert self._engine is not None
        if verb == "warm up":
            warm_up(self._engine)
            few = self._engine.time_ms(3)
            self._turn = Turn.of(few, calls_lasting(noun, few, fewest=1, most=1_000_000))
            return None
        if verb == "time":
            # calls in caches that the other engines left cold would make up the tail
            self._timed.append(self._turn.take(self._engine))
            return None
        return Samples.concatenate(self._timed).to_json()


if __name__ == "__main__":
    with ExitStack() as loaded:
        sys.exit(serve_messages(_Served(loaded).answer))
