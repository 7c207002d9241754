from __future__ import annotations

import pytest
import torch

from calibration.cost import NetworkCost
from calibration.terms import CACHES, RAMP, SHARP, Terms

from .chain import chain

BLOCK = 16


def by_kind(terms: Terms, kept: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Kind -> its columns for one width vector."""
    row = terms(torch.tensor([kept], dtype=torch.float32))[0]
    names, counts = zip(*terms.kinds, strict=True)
    return dict(zip(names, row.split(counts), strict=True))


def test_terms_of_a_width_by_hand() -> None:
    """conv0: 3 -> 64, conv1: 64 -> 96, head: 96 -> 5; kept 40 and 96."""
    terms = Terms(NetworkCost.of(chain((64, 96))), BLOCK)
    found = by_kind(terms, (40, 96))
    assert found["constant"].tolist() == [1]
    assert found["MACs"].tolist() == [40 / 64, 40 / 64, 1]
    assert found["widths"].tolist() == [40 / 64, 1]
    assert found["block MACs"].tolist() == [48 / 64, 48 / 64, 1]
    assert found["wide MACs"].tolist() == [1, (128 * 48) / (96 * 64), 64 / 16]
    assert found["output tails"].tolist() == [40 / 64, 0, 1]  # five classes never fill a block
    assert found["input tails"].tolist() == [0, 40 / 64, 0]
    assert found["width tails"].tolist() == [40 / 64, 0]


def test_without_blocks_there_are_no_steps() -> None:
    terms = Terms(NetworkCost.of(chain((64, 96))), 1)
    assert set(by_kind(terms, (41, 95))) == {
        "constant",
        "MACs",
        "widths",
        "streamed weights",
        "ramp",
    }


def test_weights_that_fit_a_cache_are_not_streamed() -> None:
    terms = Terms(NetworkCost.of(chain((64, 96))), BLOCK)
    dense, half = (by_kind(terms, kept)["streamed weights"] for kept in ((64, 96), (40, 64)))
    assert dense.tolist() == [1] * len(CACHES)
    share = (9 * (3 * 40 + 40 * 64) + 5 * 64) / (9 * (3 * 64 + 64 * 96) + 5 * 96)
    assert half[-1] == pytest.approx(share, rel=0.01)  # a cache that holds next to nothing
    assert half[0] == pytest.approx(2 * share / (1 + share**-SHARP), rel=0.01)  # one that holds all
    assert (half.diff() >= 0).all()


def test_small_layers_are_slow_for_their_work() -> None:
    terms = Terms(NetworkCost.of(chain((64, 96))), BLOCK)
    small, dense = (by_kind(terms, kept)["ramp"] for kept in ((40, 24), (64, 96)))
    macs = torch.tensor([40 / 64, 40 / 64 * 24 / 96, 24 / 96])
    torch.testing.assert_close(small, macs * (1 + RAMP) / (macs + RAMP))
    assert dense.tolist() == [1, 1, 1]
    assert (small > macs).all()


def test_shares_of_a_kind_add_up_to_one() -> None:
    terms = Terms(NetworkCost.of(chain((64, 96))), BLOCK)
    shares = terms.shares().split([count for _, count in terms.kinds])
    assert all(abs(float(part.sum()) - 1) < 1e-6 for part in shares)
