"""A neighbour that keeps a core busy, all the time or in bursts, as another inference would.

python -m benchmarks.busy steady 1          # core 1, all the time
python -m benchmarks.busy streams 1         # the same, through the memory that all cores share
python -m benchmarks.busy bursts 0 1        # core 0 or 1 at random, 50-500 ms on, 50-500 ms off
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

BURST_S = (0.05, 0.5)
SEED = 0
STREAMED_MIB = 64


def main() -> None:
    kind, *cores = sys.argv[1:]
    allowed = [int(core) for core in cores]
    parent = os.getppid()
    generator = np.random.default_rng(SEED)
    work = _work(kind)
    while os.getppid() == parent:  # an orphan ends
        os.sched_setaffinity(0, {int(generator.choice(allowed))})
        _repeat(work, generator.uniform(*BURST_S))
        if kind == "bursts":
            time.sleep(generator.uniform(*BURST_S))


@contextmanager
def neighbour(arguments: Sequence[str]) -> Iterator[None]:
    """Such a process meanwhile; none without arguments."""
    if not arguments:
        yield
        return
    with subprocess.Popen([sys.executable, "-m", "benchmarks.busy", *arguments]) as busy:
        try:
            time.sleep(1.0)  # it starts up
            yield
            if busy.poll() is not None:
                raise SystemExit("the busy process ended early")
        finally:
            busy.kill()


def _work(kind: str) -> Callable[[], object]:
    """Sums over more than any cache holds; else matrix products whose operands fit the caches."""
    if kind == "streams":
        return np.ones(STREAMED_MIB * 2**20 // 8).sum
    matrix = np.ones((192, 192), np.float32)
    return lambda: matrix @ matrix


def _repeat(work: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        work()


if __name__ == "__main__":
    main()
