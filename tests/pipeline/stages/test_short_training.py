from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from calibration.counts import Count
from pipeline.options import PrepareOptions, PruneOptions
from pipeline.pruning.groups import trace
from pipeline.pruning.select import Selector, priced
from pipeline.run import Context
from pipeline.stages import short_training
from pipeline.stages.common import LAYOUT
from pipeline.stages.short_training import losses_after_steps

from ..training.gated import TwoConvs
from ..training.small import CLASSES, FABRIC, make_data

DATA = make_data(train=128)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Losses after steps of the widths that it is called with, and the model they are of."""
    torch.manual_seed(0)
    model = TwoConvs(CLASSES)
    skeleton = trace(model.eval(), DATA.images("train", 2)[0])
    selector = Selector(skeleton, priced(Count.macs(skeleton)), 4)
    scores = {g.name: torch.arange(g.channels).double().numpy() for g in skeleton.groups.prunable}
    monkeypatch.setattr(short_training, "data_of", lambda context: DATA)
    monkeypatch.setattr(short_training, "fabric_of", lambda run: FABRIC)

    def call(*kept: tuple[int, ...], **options: Any) -> list[float]:
        prepare = PrepareOptions(train_batch=32)
        context = SimpleNamespace(
            run=SimpleNamespace(options=lambda stage, cls: prepare, memo={LAYOUT: True}),
            options=lambda cls: PruneOptions(**options),
        )
        done: list[tuple[int, int]] = []
        plans = [selector.plan(scores, one) for one in kept]
        found = losses_after_steps(
            *(cast("Context", context), model, skeleton.groups, plans),
            lambda number, total: done.append((number, total)),
        )
        assert done == [(number, len(kept)) for number in range(1, len(kept) + 1)]
        return found

    call.model = model  # type: ignore[attr-defined]
    return call


def test_what_keeps_more_loses_less_and_the_model_stays_as_it_was(asked: Any) -> None:
    before = {name: value.clone() for name, value in asked.model.state_dict().items()}
    whole, narrow = asked((16, 16), (4, 4), worth_steps=30)
    assert whole < narrow
    after = asked.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not asked.model.training


def test_plans_see_the_same_images_whatever_was_asked_before(asked: Any) -> None:
    torch.manual_seed(5)
    first = asked((16, 16), (8, 8), (16, 16), worth_steps=6)
    assert first[0] == first[2]
    torch.manual_seed(6)
    state = torch.get_rng_state()
    assert asked((8, 8), worth_steps=6) == [first[1]]
    assert torch.equal(torch.get_rng_state(), state), "a training that follows draws as without"


def test_steps_teach(asked: Any) -> None:
    one, many = (asked((16, 16), worth_steps=steps)[0] for steps in (1, 40))
    assert many < 0.8 * one


def test_a_plan_that_diverges_is_the_last_choice(asked: Any) -> None:
    assert asked((16, 16), worth_steps=12, weight_lr=1e30) == [math.inf]
