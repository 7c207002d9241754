"""The default LPNet: a non-negative sum of per-layer terms, times a correction if data backs it.

The weights are non-negative, so the sum grows with every width, whole blocks at a time; the
correction is weakened until the product does, too.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from calibration.correction import Correction, choose_correction
from calibration.law import Array, Law, Measured, choose_freedom, solve
from calibration.terms import Lifts, Terms

STRENGTHS = (1.0, 0.5, 0.25, 0.0)  # of the correction
ROWS = 1000  # at once, which caches hold: 2.6 times faster on 10 000 of MobileNetV2


class Structured(nn.Module):
    """log(terms @ weights) + correction, differentiable in the widths."""

    def __init__(self, terms: Terms, centres: int = 0) -> None:
        super().__init__()
        self.terms = terms
        count = sum(number for _, number in terms.kinds)
        self.register_buffer("weights", torch.zeros(count))
        self.register_buffer("centres", torch.zeros(centres, terms.groups))
        self.register_buffer("heights", torch.zeros(centres))
        self.register_buffer("length", torch.ones(()))

    def forward(self, kept: Tensor, lifts: Lifts | None = None) -> Tensor:
        """(N, G) kept channels -> (N,) log of the latency ratio to the dense anchor."""
        if lifts is None and len(kept) > ROWS:
            return torch.cat([self(part) for part in torch.split(kept, ROWS)])
        found: Tensor = torch.log(self.terms(kept, lifts) @ self.get_buffer("weights"))
        if len(self.get_buffer("centres")):
            found = found + self._correction(kept / self.terms.get_buffer("channels"))
        return found

    def _correction(self, shares: Tensor) -> Tensor:
        """(N, G) width shares -> (N,) sum of the bells, each split into what depends on the row,
        on the centre, and on both: four times faster on 10 000 rows than their distances."""
        centres, spread = self.get_buffer("centres"), self.get_buffer("length") ** 2
        of_centre = (centres**2).sum(1) / (-2 * spread)
        of_row = torch.exp((shares**2).sum(1) / (-2 * spread))
        together = torch.addmm(of_centre, shares / spread, centres.T).exp()
        bells: Tensor = (together @ self.get_buffer("heights")) * of_row
        return bells

    def fit(self, kept: Tensor, measured: Measured, prior: Array) -> None:
        """Fit to (N, G) widths and what was measured of them.

        `prior` are the weights (T,) of another device, or none (0,).
        """
        kinds = self._kinds()
        if len(prior):  # as if it were one more kind, of which the fit takes what it likes
            kinds = np.column_stack([kinds, prior])
        freedom = choose_freedom(measured, kinds)
        law = solve(measured, kinds, freedom)
        correction = choose_correction(measured, lambda part: solve(part, kinds, freedom))
        for strength in STRENGTHS:
            self._put(law, correction.scaled(strength))
            if self.grows(kept):
                return

    def measured(self, kept: Tensor, ratios: Array, errors: Array, exposures: Array) -> Measured:
        """Of (N, G) widths the ratios (N,) with their log errors and exposures (N,)."""
        with torch.no_grad():
            terms = self.terms(kept).double().numpy()
            shares = (kept / self.terms.get_buffer("channels")).double().numpy()
        return Measured(terms, shares, ratios, errors, exposures)

    def grows(self, kept: Tensor) -> bool:
        """Whether a whole block more, in any group of any row, is never predicted faster."""
        channels, block = self.terms.get_buffer("channels"), self.terms.block
        with torch.no_grad():
            here = self(kept)
            for group in range(self.terms.groups):
                wider = kept.clone()
                wider[:, group] += block
                inside = wider[:, group] <= channels[group]
                if bool((self(wider[inside]) < here[inside] - 1e-6).any()):
                    return False
        return True

    def _put(self, law: Law, correction: Correction) -> None:
        # plain attributes of buffers that change their size
        self.weights = torch.tensor(law.weights, dtype=torch.float32)
        self.centres = torch.tensor(correction.centres, dtype=torch.float32)
        self.centres = self.centres.reshape(-1, self.terms.groups)
        self.heights = torch.tensor(correction.heights, dtype=torch.float32)
        self.length = torch.tensor(correction.length, dtype=torch.float32)

    def _kinds(self) -> Array:
        """(T, K): each term's part of its kind."""
        shares = self.terms.shares().double().numpy()
        table = np.zeros((len(shares), len(self.terms.kinds)))
        first = 0
        for column, (_, count) in enumerate(self.terms.kinds):
            table[first : first + count, column] = shares[first : first + count]
            first += count
        return table
