"""A smooth correction of the law, learned from what it leaves: bells around measured networks.

Kernel ridge on the log residuals, a Gaussian process in all but name. Its height and reach, or
none at all, are chosen by cross-validation inside the records at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from calibration.law import INNER_FOLDS, Array, Law, Measured, certainty, inner_folds

HEIGHTS = (0.01, 0.03)  # log ratio
REACHES = (0.3, 0.6)  # in width shares a group
CLEARLY = 2.0  # standard errors by which a correction must be better than none


@dataclass(frozen=True)
class Correction:
    """Adds sum_k heights[k] * exp(-|shares - centres[k]|^2 / (2 length^2)) to the log ratio."""

    centres: Array  # (K, G) width shares
    heights: Array  # (K,)
    length: float

    def at(self, shares: Array) -> Array:
        """(N, G) width shares -> (N,) what to add to the log ratio."""
        found: Array = _bells(shares, self.centres, self.length) @ self.heights
        return found

    def scaled(self, strength: float) -> Correction:
        if strength == 0:
            return Correction(self.centres[:0], self.heights[:0], 1.0)
        return replace(self, heights=strength * self.heights)

    @classmethod
    def none(cls, groups: int) -> Correction:
        return cls(np.zeros((0, groups)), np.zeros(0), 1.0)


def _bells(shares: Array, centres: Array, length: float) -> Array:
    """(N, K) bells of height 1."""
    apart = ((shares[:, None, :] - centres[None, :, :]) ** 2).sum(2)
    found: Array = np.exp(-apart / (2 * length**2))
    return found


def fit_correction(law: Law, measured: Measured, height: float, length: float) -> Correction:
    """The ridge solution for what `law` leaves; the noise is each record's own variance."""
    kernel = height**2 * _bells(measured.shares, measured.shares, length)
    factor = cho_factor(kernel + np.diag(law.variances(measured)))
    heights = height**2 * cho_solve(factor, law.residuals(measured))
    return Correction(measured.shares, heights, length)


def choose_correction(measured: Measured, solve: Callable[[Measured], Law]) -> Correction:
    """The correction that predicts held-out records clearly best; often none."""
    groups = measured.shares.shape[1]
    grid = [(height, reach * groups**0.5) for height, reach in product(HEIGHTS, REACHES)]
    errors = np.zeros((1 + len(grid), len(measured.ratios)))
    folds = inner_folds(len(measured.ratios))
    for fold in range(INNER_FOLDS):
        seen, out = measured.only(folds != fold), measured.only(folds == fold)
        law = solve(seen)
        left = law.residuals(out)
        corrections = [fit_correction(law, seen, height, length) for height, length in grid]
        errors[:, folds == fold] = np.abs([left, *(left - c.at(out.shares) for c in corrections)])
    gains = (errors[0] - errors[1:]) * certainty(measured.errors)
    best = int(np.argmax(gains.sum(1)))
    doubt = gains[best].std() * len(measured.ratios) ** 0.5
    if gains[best].sum() <= CLEARLY * doubt:
        return Correction.none(groups)
    return fit_correction(solve(measured), measured, *grid[best])
