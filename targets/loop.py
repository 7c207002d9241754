"""The one timing loop of all targets that are timed from the host."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from resource import RUSAGE_SELF, getrusage
from time import perf_counter_ns, process_time_ns

import numpy as np
from numpy.typing import NDArray

from targets import machine
from targets.samples import Samples

FIRST_SLICE = 8  # calls; they tell how many make a slice of SLICE_MS
SLICE_MS = 10.0  # the kernel counts steal in ticks of 10 ms: it cannot be told of single calls


def time_calls(call: Callable[[], object], n: int) -> Samples:
    """Time `n` successive calls; no garbage is collected meanwhile.

    Steal and throttled time are read between slices of some 10 ms; every call of a slice in which
    they grew is marked as withheld.
    """
    if n < 1:
        raise ValueError(f"at least one call must be timed, not {n}")
    columns = np.zeros((4, n), np.int64)
    collected = gc.isenabled()
    gc.disable()
    try:
        steal_ticks, throttled_us = _timed_slices(call, columns)
    finally:
        if collected:
            gc.enable()
    wall_ns, cpu_ns, switches, withheld = columns
    return Samples(wall_ns, cpu_ns, switches, steal_ticks, throttled_us, withheld)


def _timed_slices(call: Callable[[], object], columns: NDArray[np.int64]) -> tuple[int, int]:
    """Fill the columns (4, n) slice by slice; return steal in ticks and throttled time in us."""
    calls, done, size = columns.shape[1], 0, FIRST_SLICE
    first = before = machine.steal_ticks(), machine.throttled_us()
    while done < calls:
        wall_ns, cpu_ns, switches, withheld = columns[:, done : done + size]
        _timed_loop(call, wall_ns, cpu_ns, switches)
        after = machine.steal_ticks(), machine.throttled_us()
        withheld[:] = after != before
        before = after
        done += size
        size = max(1, math.ceil(SLICE_MS * 1e6 / max(1.0, float(np.median(wall_ns)))))
    return max(0, before[0] - first[0]), max(0, before[1] - first[1])


def _timed_loop(
    call: Callable[[], object],
    wall_ns: NDArray[np.int64],
    cpu_ns: NDArray[np.int64],
    switches: NDArray[np.int64],
) -> None:
    """Fill the (n,) columns in place; only `call` stands between the two wall clock readings."""
    switches_before = getrusage(RUSAGE_SELF).ru_nivcsw
    for index in range(len(wall_ns)):
        cpu_start = process_time_ns()
        start = perf_counter_ns()
        call()
        end = perf_counter_ns()
        cpu_ns[index] = process_time_ns() - cpu_start
        wall_ns[index] = end - start
        switches_after = getrusage(RUSAGE_SELF).ru_nivcsw
        switches[index] = switches_after - switches_before
        switches_before = switches_after
