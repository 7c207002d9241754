"""The binary gate and the window its scores live in: a forward step, a backward slope.

Forward 1[s >= 0]. Backward, `poly`: db/ds = 2 + 4s on [-1/2, 0), 2 - 4s on [0, 1/2), else 0
(Bi-Real style); `tanh`: the slope of (tanh(2s) + 1) / 2; `ste`: 1 everywhere.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Surrogate = Literal["poly", "tanh", "ste"]


class BinaryGate(torch.autograd.Function):
    """Forward 1[s >= 0]; backward the slope of a continuous surrogate."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.surrogate = surrogate
        return (scores >= 0).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (scores,) = ctx.saved_tensors
        return grads[0] * surrogate_slope(scores, ctx.surrogate), None


def surrogate_slope(scores: Tensor, surrogate: Surrogate) -> Tensor:
    """d(gate)/d(score), elementwise."""
    if surrogate == "ste":
        return torch.ones_like(scores)
    if surrogate == "tanh":
        return 1 - torch.tanh(2 * scores) ** 2
    return torch.clamp(2 - 4 * scores.abs(), min=0)


class LiveClamp(torch.autograd.Function):
    """Clamp into the surrogate's live window; outside, only gradients that lead back in pass.

    Beyond (-1/2, 1/2) the polynomial slope is zero and a gate would freeze for good. With a plain
    straight-through clamp scores run away instead: a few hundred steps of the latency term put
    them so far out that no image brings them back.
    """

    LIMIT = 0.4  # where the polynomial slope is still a fifth of its peak

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        ctx.save_for_backward(scores)
        return scores.clamp(-LiveClamp.LIMIT, LiveClamp.LIMIT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (scores,) = ctx.saved_tensors
        # descent moves a score against its gradient: equal signs mean back towards the window
        outward = (scores.abs() > LiveClamp.LIMIT) & (scores * grads[0] < 0)
        return grads[0].masked_fill(outward, 0)
