from __future__ import annotations

from typing import get_args

import pytest
import torch

from calibration.widths import ChannelGroup
from pipeline.pruning.filters import l1_norm
from pipeline.pruning.start import HIGH, LOW, Start, first_scores, signal

from .networks import Network, scaled_network, seeded


@pytest.fixture(scope="module")
def network() -> Network:
    return scaled_network()


def test_a_signal_is_the_spread_times_the_weights_that_read_it(network: Network) -> None:
    model = network.model
    with torch.no_grad():
        reading = model.b.weight.square().sum((0, 2, 3)).sqrt()
        found = signal(model, network.groups["a"])
        torch.testing.assert_close(found, model.n.weight.abs() * reading)
        # no batch norm: the filters' own norm is the spread
        spread = model.b.weight.abs().mean((1, 2, 3))
        found = signal(model, network.groups["b"])
        torch.testing.assert_close(found, spread * model.head.weight.norm(dim=0))


def test_a_signal_that_no_weight_reads_is_its_spread(network: Network) -> None:
    whole = network.groups["a"]
    own = tuple(piece for piece in whole.slices if not piece.tensor.startswith("b."))
    with torch.no_grad():
        found = signal(network.model, ChannelGroup("a", whole.channels, own))
        assert torch.equal(found, network.model.n.weight.abs())


@pytest.mark.parametrize("start", get_args(Start))
def test_every_start_lies_in_the_live_window(network: Network, start: Start) -> None:
    with seeded():
        found = first_scores(network.model, network.groups["a"], start)
    assert found.min() > 0
    assert found.max() < 0.5
    assert len(set(found.tolist())) > 1
    if start != "drawn":
        assert found.sort().values.tolist() == pytest.approx(torch.linspace(LOW, HIGH, 16).tolist())


def test_ranks_are_those_of_signals_and_of_norms(network: Network) -> None:
    model, group = network.model, network.groups["a"]
    with torch.no_grad():
        orders = {"signal": signal(model, group), "norm": l1_norm(model, group)}
    found = {start: first_scores(model, group, start) for start in ("signal", "norm")}
    assert all(torch.equal(found[start].argsort(), orders[start].argsort()) for start in orders)
    assert not torch.equal(found["signal"], found["norm"])
