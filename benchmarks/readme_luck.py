"""The README's table on the luck of processes."""

from __future__ import annotations

from typing import Any


def luck(result: dict[str, Any]) -> str:
    """One row a network: what its ratio to the dense one varies by."""
    plans = result["plans"]
    return "\n".join(
        [
            "Standard deviation of a pruned network's measured ratio to the dense one, measured "
            f"{result['times']} times in each of {result['processes']} processes, the networks by "
            "turns, so that the second column holds what the machine drifted by, too. A plan is "
            f"timed in {plans['fewest']} to {plans['most']} processes.",
            "",
            "| network | within one process | from process to process, beyond that |",
            "|---|---|---|",
            *(
                f"| {name} | {case['within']:.1%} | {case['between']:.1%} |"
                for name, case in result["cases"].items()
            ),
            "",
        ]
    )
