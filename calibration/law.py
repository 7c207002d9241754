"""The law of the default LPNet: a non-negative sum of terms, fitted to relative errors.

Each record counts by how well it was measured; wild ones lose weight. What others slowed is
corrected by as much as such records lie beside the others on average (`calibration.pace`). Where
records are few, the weights are drawn to a law of one weight for each kind of term; the law of the
same network on another device, if there is one, joins as a kind of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from calibration.pace import RANGE, USUAL

Array = NDArray[np.float64]

REWEIGHTED = 4  # rounds of weights by residual
TAIL = 4.0  # degrees of freedom of the residuals, as Student's t: wild records are expected
SCATTER = np.geomspace(0.002, 0.2, 40)  # candidates of the law's own scatter, as log ratio
MEDIAN_CHI2 = 0.455  # of one standard normal, squared
# how far a weight may lie from the law of kinds, in multiples of its value there; by inner
# cross-validation
FREEDOMS = (0.3, 3.0, 30.0)
INNER_FOLDS = 4


@dataclass(frozen=True)
class Measured:
    """Records as arrays: terms (N, T), width shares (N, G), ratios (N,), their log errors (N,)."""

    terms: Array
    shares: Array
    ratios: Array
    errors: Array  # standard error of each log ratio
    exposures: Array  # what a neighbour may have added to each log ratio, over the law's unevenness

    def only(self, rows: NDArray[np.bool_]) -> Measured:
        return Measured(*(array[rows] for array in vars(self).values()))


@dataclass(frozen=True)
class Law:
    """A fitted sum: weights (T,) and the scatter of the records around it."""

    weights: Array
    scatter: float  # standard deviation of log(measured / predicted), without measuring errors
    unevenness: float  # how much of the exposures the records have

    def residuals(self, of: Measured) -> Array:
        """(N,) log of measured / predicted, as on a machine that nobody else slows."""
        found: Array = np.log(self.quiet(of) / (of.terms @ self.weights))
        return found

    def quiet(self, of: Measured) -> Array:
        """(N,) the ratios without what neighbours added to them."""
        found: Array = of.ratios * np.exp(-self.unevenness * of.exposures)
        return found

    def variances(self, of: Measured) -> Array:
        """(N,) variances that make the residuals normal: larger for the wild ones."""
        known = self.scatter**2 + of.errors**2
        found: Array = known * (TAIL + self.residuals(of) ** 2 / known) / (TAIL + 1)
        return found


def inner_folds(count: int) -> NDArray[np.int64]:
    """(N,) fold of each record; not those of the outer cross-validation."""
    return np.random.default_rng(1).permutation(count) % INNER_FOLDS


def solve(measured: Measured, kinds: Array, freedom: float) -> Law:
    """Non-negative weights by reweighted least squares on relative errors."""
    law = Law(np.zeros(0), 0.02, USUAL)
    sigma = np.sqrt(law.scatter**2 + measured.errors**2)
    for _ in range(REWEIGHTED):
        scale = measured.terms / law.quiet(measured)[:, None]
        by_kind, _ = nnls((scale @ kinds) / sigma[:, None], 1 / sigma)
        centre = kinds @ by_kind
        reach = freedom * (centre + 0.01 * kinds.max(1))
        rows = np.vstack([scale / sigma[:, None], np.diag(1 / reach)])
        goal = np.concatenate([1 / sigma, centre / reach])
        weights, _ = nnls(rows, goal, maxiter=20 * rows.shape[1])
        law = replace(law, weights=weights)
        law = replace(law, unevenness=_unevenness(law, measured, sigma))
        law = replace(law, scatter=_scatter(law.residuals(measured), measured.errors))
        sigma = np.sqrt(law.variances(measured))
    return law


def _unevenness(law: Law, measured: Measured, sigma: Array) -> float:
    """Of which the records lie nearest to the law, and to the usual one; of either sign."""
    exposed = measured.exposures / sigma
    shifts = np.log(measured.ratios / (measured.terms @ law.weights)) / sigma
    strength = 1 / RANGE**2
    return float((exposed @ shifts + strength * USUAL) / (exposed @ exposed + strength))


def _scatter(residuals: Array, errors: Array) -> float:
    """The least scatter that explains half of the residuals beside their measuring errors.

    Half by what they say: many that were measured ill say nothing of the law.
    """
    sure = certainty(errors)
    explained = residuals**2 <= MEDIAN_CHI2 * (SCATTER[:, None] ** 2 + errors**2)
    enough = (explained * sure).sum(1) >= 0.5 * sure.sum()
    return float(SCATTER[np.argmax(enough)] if enough.any() else SCATTER[-1])


def choose_freedom(measured: Measured, kinds: Array) -> float:
    folds = inner_folds(len(measured.ratios))

    def loss(freedom: float) -> float:
        total = 0.0
        for fold in range(INNER_FOLDS):
            out = measured.only(folds == fold)
            law = solve(measured.only(folds != fold), kinds, freedom)
            total += float((np.abs(law.residuals(out)) * certainty(out.errors)).sum())
        return total

    return min(FREEDOMS, key=loss)


def certainty(errors: Array) -> Array:
    """(N,) how much records with these log errors count: those measured ill say little."""
    found: Array = 1 / np.sqrt(1 + (errors / 0.01) ** 2)
    return found
