"""What a budget bounds, and how much of it: 4.0ms, 0.6x of dense, or a count such as 1.2G."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Literal, Self, cast

# "flops" are multiply-adds of one image, as in the papers that prune by them
Objective = Literal["latency", "flops", "params"]
Percentile = Literal["p50", "p90", "p99"]


@dataclass(frozen=True)
class Budget:
    """A budget: a multiple of the dense network's cost, milliseconds, or a count such as 1.2G."""

    value: float
    unit: Literal["ms", "x", "k", "M", "G"]

    PATTERN = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|x|k|M|G)")
    COUNTS: ClassVar[Mapping[str, int]] = {"k": 10**3, "M": 10**6, "G": 10**9}

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "4.0ms", "0.6x" or "1.2G"; ValueError that says what is allowed."""
        found = cls.PATTERN.fullmatch(text.strip())
        if found is None:
            raise ValueError(
                f"{text!r} is not a budget: write milliseconds (4.0ms), 0.6x or a count (1.2G)"
            )
        value, unit = float(found[1]), cast("Any", found[2])
        if value <= 0:
            raise ValueError(f"{text!r}: a budget must be greater than zero")
        if unit == "x" and value >= 1:
            raise ValueError(f"{text!r}: a budget relative to dense must be below 1x")
        return cls(value, unit)

    def in_ms(self, dense_ms: float) -> float:
        assert self.unit not in self.COUNTS
        return self.value * dense_ms if self.unit == "x" else self.value

    def as_count(self, dense: int) -> int:
        """The most MACs or parameters, of a network that has `dense`; decimal, hence exact."""
        assert self.unit != "ms"
        return int(Decimal(repr(self.value)) * self.COUNTS.get(self.unit, dense))

    def __str__(self) -> str:
        # what `parse` reads: all digits, no exponent
        return f"{Decimal(repr(self.value)).normalize():f}{self.unit}"


def advised(floor: float, *, room: float = 1.05) -> float:
    """The least budget to ask for, where this share of the dense is the least that is reached.

    `room`: how far above the floor, as its multiple.
    """
    return min(math.ceil(100 * room * floor) / 100, 0.99)


def advice(floor: float, *, room: float = 1.05) -> str:
    """The same in words."""
    least = advised(floor, room=room)
    if least >= floor:
        return f"ask for at least {least:.2f}x"
    return "fewer channels hardly help it: lower --min-width, or take another network or target"


def contradiction(
    objective: Objective, budget: Budget, percentile: Percentile
) -> tuple[str, str] | None:
    """Why the three do not go together, and what to do; None when they do."""
    if objective == "latency":
        if budget.unit in Budget.COUNTS:
            return (
                f"the budget {budget} is a count, and the objective is latency",
                "give --budget as 4.0ms or 0.6x, or choose --objective flops or params",
            )
    elif percentile != "p50":
        return (
            f"{percentile} of {objective} means nothing: a count has no percentiles",
            "leave --percentile at p50, or choose --objective latency",
        )
    elif budget.unit == "ms":
        return (
            f"the budget {budget} is a latency, and the objective is {objective}",
            "give --budget as 0.6x or 1.2G, or choose --objective latency",
        )
    return None
