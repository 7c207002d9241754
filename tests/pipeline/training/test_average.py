"""The moving average of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.evaluation import Top1
from pipeline.training import Trainer
from pipeline.training.average import WeightAverage

from .small import equal, folder_of, make_model, recipe, train


def test_average_follows_its_definition_and_copies_counters() -> None:
    model = nn.BatchNorm2d(1)
    average = WeightAverage(model, 0.25)
    expected = 1.0  # the first weight
    for step in range(4):
        nn.init.constant_(model.weight, float(step))
        assert model.num_batches_tracked is not None
        model.num_batches_tracked.fill_(step)
        average.update(step)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    kept = average.state_dict()
    assert kept["weight"].item() == pytest.approx(expected)
    assert int(kept["num_batches_tracked"]) == 3
    assert model.weight.item() == 3.0


def test_average_is_in_place_only_inside() -> None:
    model = make_model()
    average = WeightAverage(model, 0.9)
    own = make_model(seed=1)
    model.load_state_dict(own.state_dict())
    with average.in_place():
        assert equal(model, make_model())
    assert equal(model, own)


def test_evaluation_and_result_are_the_average(tmp_path: Path) -> None:
    seen: list[float] = []
    model = make_model()

    def evaluate() -> Top1:
        seen.append(model.linear.bias[0].item())
        return Top1(0.5, 2)

    last: dict[str, torch.Tensor] = {}

    def look(_: Trainer) -> None:
        last.update({name: value.clone() for name, value in model.state_dict().items()})

    plan = recipe(2, ema=0.99)
    train(folder_of(tmp_path, "a"), plan, model=model, evaluate=evaluate, on_step=look)
    assert seen[-1] == model.linear.bias[0].item()
    # what is trained does not feel its average
    plain, _ = train(folder_of(tmp_path, "b"), recipe(2))
    assert not equal(plain, model)
    model.load_state_dict(last)
    assert equal(plain, model)


def test_finished_training_gives_the_average_again(tmp_path: Path) -> None:
    first, _ = train(tmp_path, recipe(2, ema=0.9))
    again, _ = train(tmp_path, recipe(2, ema=0.9), model=make_model(seed=5))
    assert equal(first, again)
