"""The table on the luck of processes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def luck(result: dict[str, Any]) -> str:
    """One row a network: what its ratio to the dense one varies by."""
    plans = result["plans"]
    return "\n".join(
        [
            "Standard deviation of a pruned network's measured ratio to the dense one, measured "
            f"{result['times']} times in each of {result['processes']} processes, the networks by "
            "turns, so that the second column holds what the machine drifted by, too. Then what is "
            "known of it after a minute (half the 95 % interval of the mean): by processes that "
            "hold both and measure it as a candidate of a calibration, or by rounds of two fresh "
            f"processes, as those {plans['fewest']} to {plans['most']} that time a plan. Last, the "
            "ratio in these over that in processes that hold both (95 %).",
            "",
            "| network | within one process | from process to process, beyond that "
            "| after a minute (s a process) | apart (s a round) | apart over together |",
            "|---" * 6 + "|",
            *(_row(name, case) for name, case in result["cases"].items()),
            "",
        ]
    )


def _row(name: str, case: dict[str, Any]) -> str:
    cells = [
        f"{case['within']:.1%}",
        f"{case['between']:.1%}",
        f"{case['minute']:.1%} ({case['seconds']:.1f})",
        f"{case['apart_minute']:.1%} ({case['apart_seconds']:.1f})",
        _shift(case),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def _shift(case: dict[str, Any]) -> str:
    """Of geometric means, each process and each round one value."""
    together, apart = (np.log(case[key]) for key in ("ratios", "apart_ratios"))
    each = together.mean(axis=1)
    middle = apart.mean() - each.mean()
    half = 1.96 * math.sqrt(each.var(ddof=1) / len(each) + apart.var(ddof=1) / len(apart))
    low, high = (math.exp(middle + side * half) for side in (-1, 1))
    return f"{math.exp(middle):.3f} ({low:.3f} to {high:.3f})"
