"""An LPNet that begins from one of the same network on another device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from calibration.cost import NetworkCost
from calibration.database import LatencyRecord
from calibration.errors import PredictorError
from calibration.lpnet import FitOptions, LPNet, fit_lpnet, fit_once
from calibration.sampling import first_widths
from calibration.skeleton import Skeleton
from calibration.terms import Terms
from targets.base import TargetOptions
from targets.fake import FakeTarget

from .chain import chain
from .laws import records_of

BLOCK = 16
NOISE = 0.003
FINGERPRINT = FakeTarget(TargetOptions(batch=2)).fingerprint()


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return chain((64, 96, 128, 128, 160))


def device(skeleton: Skeleton, speeds: dict[str, float]):
    """A latency law: every layer has its own cost on all devices, every kind a speed of its own."""
    terms = Terms(NetworkCost.of(skeleton), BLOCK)
    speed = np.concatenate([np.full(count, speeds.get(kind, 0.0)) for kind, count in terms.kinds])
    own = speed * np.random.default_rng(7).gamma(1.0, 1.0, len(speed))
    return lambda kept: terms(torch.tensor(kept, dtype=torch.float32)).double().numpy() @ own


def records_on(skeleton: Skeleton, speeds: dict[str, float], count: int) -> list[LatencyRecord]:
    wanted = first_widths(skeleton.groups, 8, count, seed=0)
    return records_of(skeleton.groups, wanted, device(skeleton, speeds), noise=NOISE)


ONE = {"block MACs": 1.0, "widths": 0.3}
OTHER = {"block MACs": 1.6, "widths": 0.2, "constant": 0.3}


@pytest.fixture(scope="module")
def prior(skeleton: Skeleton) -> LPNet:
    return fit_lpnet(records_on(skeleton, ONE, 150), skeleton, FINGERPRINT, block=BLOCK)


def error_after(skeleton: Skeleton, count: int, options: FitOptions) -> float:
    """Mean error on networks of another seed, after `count` measurements of the other device."""
    records = records_on(skeleton, OTHER, count)
    net = fit_once(records, skeleton, FINGERPRINT, block=BLOCK, options=options)
    unseen = first_widths(skeleton.groups, 8, 60, seed=9)
    law, full = device(skeleton, OTHER), skeleton.groups.full()
    ratios = law(np.array([w.kept for w in unseen])) / law(np.array([full.kept]))
    anchor = float(net.get_buffer("anchor_ms"))
    errors = [
        net.predict_one_ms(w) / anchor / ratio - 1
        for w, ratio in zip(unseen, ratios.tolist(), strict=True)
        if _inside(net, w.kept)
    ]
    return float(np.abs(errors).mean())


def _inside(net: LPNet, kept: tuple[int, ...]) -> bool:
    low, high = net.get_buffer("seen_low").numpy(), net.get_buffer("seen_high").numpy()
    return bool(((low <= kept) & (kept <= high)).all())


def test_a_dozen_measurements_are_enough_with_a_prior(skeleton: Skeleton, prior: LPNet) -> None:
    begun = FitOptions(prior=prior.as_prior(BLOCK))
    with_prior = error_after(skeleton, 20, begun)
    assert with_prior < 0.02
    assert with_prior < 0.7 * error_after(skeleton, 20, FitOptions())
    assert error_after(skeleton, 12, begun) < 0.03


def test_a_prior_of_nonsense_does_little_harm(skeleton: Skeleton) -> None:
    rng = np.random.default_rng(1)
    nonsense = tuple(
        rng.gamma(
            0.3, 1.0, sum(n for _, n in Terms(NetworkCost.of(skeleton), BLOCK).kinds)
        ).tolist()
    )
    misled = error_after(skeleton, 100, FitOptions(prior=nonsense))
    assert misled < 1.3 * error_after(skeleton, 100, FitOptions()) + 0.002


def test_few_records_need_a_prior(skeleton: Skeleton, prior: LPNet) -> None:
    with pytest.raises(PredictorError, match="7 measured networks are too few"):
        error_after(skeleton, 7, FitOptions(prior=prior.as_prior(BLOCK)))
    with pytest.raises(PredictorError, match="8 measured networks are too few"):
        error_after(skeleton, 8, FitOptions())


def test_what_has_other_terms_is_no_prior(skeleton: Skeleton, prior: LPNet) -> None:
    with pytest.raises(PredictorError, match="no terms"):
        prior.as_prior(1)
    plain = fit_once(
        records_on(skeleton, ONE, 30), skeleton, FINGERPRINT, block=16, options=FitOptions("plain")
    )
    with pytest.raises(PredictorError, match="no terms"):
        plain.as_prior(BLOCK)


def test_what_it_began_from_is_stored(skeleton: Skeleton, prior: LPNet, tmp_path: Path) -> None:
    options = FitOptions(prior=prior.as_prior(BLOCK))
    records = records_on(skeleton, OTHER, 24)
    fit_lpnet(records, skeleton, FINGERPRINT, block=BLOCK, options=options).save(tmp_path)
    assert LPNet.open(tmp_path, skeleton).options == options
