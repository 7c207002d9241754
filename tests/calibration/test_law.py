from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.correction import choose_correction, fit_correction
from calibration.law import Law, Measured, choose_freedom, solve

TERMS = 6
KINDS = np.zeros((TERMS, 2))
KINDS[0, 0], KINDS[1:, 1] = 1, 1 / (TERMS - 1)
TRUE = np.array([0.1, 0.3, 0.0, 0.2, 0.4, 0.05])


def measured(count: int, *, noise: float = 0.005, wave: float = 0.0) -> Measured:
    """Networks of five widths; `wave` is a smooth effect that no sum of terms has."""
    rng = np.random.default_rng(0)
    shares = rng.uniform(0.1, 1, (count, TERMS - 1))
    terms = np.hstack([np.ones((count, 1)), shares])
    bend = wave * np.sin(5 * shares[:, 0]) * np.cos(5 * shares[:, 1])
    ratios = terms @ TRUE * np.exp(bend + rng.normal(0, noise, count))
    return Measured(terms, shares, ratios, np.full(count, noise), np.zeros(count))


def test_weights_are_found_and_none_is_negative() -> None:
    law = solve(measured(200), KINDS, 30.0)
    assert np.abs(law.weights - TRUE).max() < 0.02
    assert (law.weights >= 0).all()


def test_records_that_were_measured_ill_hardly_count() -> None:
    data = measured(100)
    spoilt = np.arange(100) % 3 == 0
    ratios, errors = data.ratios.copy(), data.errors.copy()
    ratios[spoilt], errors[spoilt] = 1.5 * ratios[spoilt], 0.3
    law = solve(replace(data, ratios=ratios, errors=errors), KINDS, 30.0)
    assert np.abs(law.residuals(data)).mean() < 0.01


def test_wild_records_lose_weight_though_they_claim_to_be_precise() -> None:
    data = measured(100)
    ratios = data.ratios.copy()
    ratios[::20] *= 2
    law = solve(replace(data, ratios=ratios), KINDS, 30.0)
    assert np.abs(law.residuals(data)).mean() < 0.01


def test_a_tight_law_has_one_weight_for_each_kind() -> None:
    weights = solve(measured(60), KINDS, 0.001).weights
    assert np.ptp(weights[1:]) < 0.01 * weights[1:].mean()


def test_the_freedom_follows_the_data() -> None:
    few, many = measured(12, noise=0.1), measured(200)
    assert choose_freedom(few, KINDS) <= choose_freedom(many, KINDS)
    assert choose_freedom(many, KINDS) > 0.3


def test_no_correction_is_learned_from_noise() -> None:
    found = choose_correction(measured(120), lambda part: solve(part, KINDS, 30.0))
    assert len(found.centres) == 0
    assert found.at(np.full((3, TERMS - 1), 0.5)).tolist() == [0, 0, 0]


def test_a_smooth_effect_is_corrected_on_networks_not_seen() -> None:
    data = measured(300, wave=0.05)
    seen, unseen = data.only(np.arange(300) < 200), data.only(np.arange(300) >= 200)
    found = choose_correction(seen, lambda part: solve(part, KINDS, 30.0))
    left = solve(seen, KINDS, 30.0).residuals(unseen)
    assert len(found.centres) == 200
    assert np.abs(left - found.at(unseen.shares)).mean() < 0.85 * np.abs(left).mean()


@pytest.mark.parametrize(("strength", "centres"), [(0.5, 40), (0.0, 0)])
def test_a_correction_is_weakened(strength: float, centres: int) -> None:
    data = measured(40, wave=0.05)
    whole = fit_correction(Law(TRUE, 0.02, 0.0), data, 0.03, 1.0)
    weak = whole.scaled(strength)
    assert len(weak.centres) == centres
    assert np.allclose(weak.at(data.shares), strength * whole.at(data.shares))
