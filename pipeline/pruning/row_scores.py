"""The linear score of standardised filters, without ever holding the standardised filters.

Rows to mean 0 and norm 1: weight decay on a filter then does not move its score, and a step of
the gate layer moves a score equally far whatever the fan-in; with spread 1 instead, a 3x3x64
filter's score moves 576 times as far as its bias does, and gates close by noise alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

FLAT = 1e-3  # of a row's mean: what a row without any shape has for its spread


def standardised(rows: Tensor) -> Tensor:
    """(n, k) rows to mean 0 and norm 1."""
    mean, length = _mean_and_length(rows)
    return (rows - mean[:, None]) / length[:, None]


def row_scores(rows: Tensor, weights: Tensor) -> Tensor:
    """`standardised(rows) @ weights` for (n, k) rows and (k,) weights: (n,), in float32 or more.

    Written out, forward and backward keep three copies of every filter of the network: more than
    the optimiser does, and half of what a gated step costs on networks of many weights.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return cast("Tensor", _RowScores.apply(rows, weights))


class _RowScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor) -> Tensor:
        mean, length = _mean_and_length(rows)
        scores = rows.mv(weights - weights.mean()) / length
        ctx.save_for_backward(rows, weights, mean, length, scores)
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, weights, mean, length, scores = ctx.saved_tensors
        pull = grads[0] / length
        of_weights = None
        if ctx.needs_input_grad[1]:
            of_weights = rows.T.mv(pull) - (pull * mean).sum()
            of_weights -= of_weights.mean()
        if not ctx.needs_input_grad[0]:
            return None, of_weights
        shrink = pull * scores / length  # d(score)/d(row) = (weights - (row - mean) * ...) / length
        of_rows = (rows * -shrink[:, None]).addr_(pull, weights - weights.mean())
        return of_rows.add_((shrink * mean)[:, None]), of_weights


def _mean_and_length(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) means, and norms of the rows around them.

    By sums that every BLAS has: torch's own variance takes hundreds of times as long on a CPU.
    """
    mean, norm = rows.mean(1), torch.linalg.vector_norm(rows, dim=1)
    square = norm.square() - rows.shape[1] * mean.square()
    flat = rows.shape[1] * (FLAT * mean).square()
    return mean, (square.clamp_min(0) + flat).sqrt().clamp_min(1e-8)
