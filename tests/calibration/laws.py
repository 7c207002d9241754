"""Records of networks whose latency is a known law of their widths, and a fit without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from calibration.active import Array, Predict
from calibration.database import LatencyRecord
from calibration.widths import ChannelGroups, WidthVector

ANCHOR_MS = 2.0
Law = Callable[[Array], Array]  # (N, G) kept channels -> (N,) any unit of time


def records_of(
    groups: ChannelGroups, wanted: Sequence[WidthVector], law: Law, *, noise: float = 0.0
) -> list[LatencyRecord]:
    """What measuring `wanted` gives under the law; intervals are as wide as the noise."""
    rng = np.random.default_rng(0)
    kept = np.array([widths.kept for widths in wanted], float)
    ratios = law(kept) / law(groups.full().as_array().astype(float)[None])
    ratios = ratios * np.exp(noise * rng.standard_normal(len(ratios)))
    half = 1.96 * max(noise, 1e-4)
    return [
        LatencyRecord(
            *(widths, ratio, (ratio * (1 - half), ratio * (1 + half))),
            *(ANCHOR_MS, ratio * ANCHOR_MS, ()),
        )
        for widths, ratio in zip(wanted, ratios.tolist(), strict=True)
    ]


def bilinear_fit(records: Sequence[LatencyRecord]) -> Predict:
    """Ridge regression on widths and products of neighbouring widths."""
    kept = np.array([record.widths.kept for record in records], float)
    ratios = np.array([record.ratio for record in records])
    design = _terms(kept)
    solution = np.linalg.solve(
        design.T @ design + 1e-4 * np.eye(design.shape[1]), design.T @ ratios
    )
    return lambda wanted: ANCHOR_MS * np.maximum(_terms(wanted) @ solution, 1e-3)


def _terms(kept: Array) -> Array:
    shares = kept / 64
    return np.column_stack([np.ones(len(kept)), shares, shares[:, 1:] * shares[:, :-1]])
