"""Gates held on a plan: the scores decide what it keeps, the budget how much.

Latency falls in steps of the runtime's channel blocks and of whole branches, and nothing that one
gate does shows in it. Here no price pushes gates: every few steps the selection that makes the
final plan is asked what is worth most within the aim, as scores then are, and in each group as
many of the best-scored gates stay open as it says (as movement pruning does, arXiv 2005.07683,
with a share of all weights in the budget's place). Images alone move the scores, of closed gates
as of open ones: what is missed scores more, and comes back in place of what is worth less in its
group. Between groups a channel counts for what `worth` says, whatever its group's scores came to.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pipeline.pruning.constraint import Aim

PROJECTIONS = 40  # of a training, at most one a step


class Projection:
    """No part of the loss; `hold(aim)` puts the gates on a plan and says what it costs."""

    multiplier = 0.0

    def __init__(self, hold: Callable[[float], float], aim: Aim, *, steps: int) -> None:
        self.hold, self.aim, self.steps = hold, aim, steps
        self.predicted = aim.dense

    def loss(self, widths: Tensor, share: float) -> Tensor:
        return widths.new_zeros(())

    def ascend(self, share: float) -> None:
        """Asks again, evenly over the training."""
        step = round(share * self.steps)
        if step * PROJECTIONS // self.steps > (step - 1) * PROJECTIONS // self.steps:
            self.predicted = self.hold(self.aim.at(share))
