"""Reasons to distrust timed calls, in words: found in the evidence that was recorded with them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from targets.samples import Samples

MAX_SPREAD = 0.10  # interquartile range over median
MAX_STEAL_SHARE = 0.02
MIN_CALL_MS = 0.02  # of a shorter call, Python's own few us are a large share
MAX_CLOCK_MOVE = 0.03  # of the GPU's clock, middle 90 % of the calls, over the median

# NVML's clock event reasons that slow a busy GPU down; "idle" and "as the user set it" do not
THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown by software",
    0x40: "thermal slowdown by hardware",
    0x80: "power brake",
}


def doubts_of(samples: Samples) -> tuple[str, ...]:
    """Every reason to distrust these samples; empty if none."""
    if not len(samples):
        return ("there are no samples",)
    return (*disturbances_of(samples), *_shape_doubts(samples))


def disturbances_of(samples: Samples) -> tuple[str, ...]:
    """What kept these calls from the machine, as far as it was recorded."""
    return (*_host_doubts(samples), *_gpu_doubts(samples))


def _host_doubts(samples: Samples) -> Iterator[str]:
    if samples.is_mostly_disturbed:
        clean = np.count_nonzero(samples.clean)
        yield f"only {clean} of {len(samples)} calls ran undisturbed, so all are used"
    if samples.throttled_us:
        yield f"the CPU quota held the process back for {samples.throttled_us / 1e3:.1f} ms"
    steal_s = samples.steal_ticks / os.sysconf("SC_CLK_TCK")
    if steal_s * 1e9 > MAX_STEAL_SHARE * int(samples.wall_ns.sum()):
        yield f"the hypervisor took {steal_s:.2f} s of CPU time"


def _gpu_doubts(samples: Samples) -> Iterator[str]:
    if samples.gpu_throttle is not None:
        yield from _throttle_doubts(samples.gpu_throttle)
    if samples.gpu_foreign is not None and samples.gpu_foreign.any():
        share = np.count_nonzero(samples.gpu_foreign) / len(samples)
        most = samples.gpu_foreign.max()
        yield f"up to {most} foreign processes were on the GPU during {share:.0%} of the calls"
    if samples.gpu_mhz is not None:
        low, median, high = np.quantile(samples.gpu_mhz, (0.05, 0.5, 0.95))
        if high - low > MAX_CLOCK_MOVE * median:
            yield f"the GPU's clock moved between {low:.0f} and {high:.0f} MHz"


def _throttle_doubts(reasons: NDArray[np.int64]) -> Iterator[str]:
    """A doubt that names the reasons, from NVML's bit mask of each call (n,)."""
    slowing = reasons & sum(THROTTLE_REASONS)
    if slowing.any():
        found = int(np.bitwise_or.reduce(slowing))
        named = ", ".join(words for bit, words in THROTTLE_REASONS.items() if found & bit)
        share = np.count_nonzero(slowing) / len(reasons)
        yield f"the GPU was throttled during {share:.0%} of the calls ({named})"


def _shape_doubts(samples: Samples) -> Iterator[str]:
    """Doubts from the spread and size of the times themselves."""
    q25, median, q75 = np.quantile(samples.clean_ms, (0.25, 0.5, 0.75))
    if q75 - q25 > MAX_SPREAD * median:
        yield f"the middle half of the calls spreads over {(q75 - q25) / median:.0%}"
    if samples.judged == "wall" and median < MIN_CALL_MS:
        yield f"a call of {median * 1e3:.1f} us is so short that Python's own share counts"
