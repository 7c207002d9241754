"""A goal of which one of several processes is asked; the others are told what came of it.

What a search finds can hang on a last digit, and processes need not round alike: only one decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_fabric import Fabric
from torch import Tensor

from pipeline.pruning.constraint import Goal, sloped, with_slope
from pipeline.pruning.select import Cost
from pipeline.training.processes import from_first


@dataclass(frozen=True)
class Led:
    """What all processes of a training know of a goal."""

    goal: Goal | None  # of the first process; the others need none
    fabric: Fabric

    def numbers(self, find: Callable[[Goal], Sequence[float]], count: int) -> list[float]:
        """The `count` numbers that the first process finds."""
        return from_first(lambda: find(self._own()), count, self.fabric)

    def smooth(self) -> Cost:
        """The goal's smooth cost; value and slope are computed in the first process."""
        if self.fabric.world_size == 1:
            return self._own().smooth()
        cost = self._own().smooth() if self.fabric.is_global_zero else None

        def told(widths: Tensor) -> Tensor:
            def found() -> list[float]:
                assert cost is not None
                value, slope = with_slope(cost, widths)
                return [value, *slope.flatten().tolist()]

            value, *slope = from_first(found, 1 + widths.numel(), self.fabric)
            line = widths.new_tensor(slope).view_as(widths)
            return value + sloped(widths, line)

        return told

    def _own(self) -> Goal:
        if self.goal is None:
            raise ValueError("the first process of a training under a budget needs a goal")
        return self.goal
