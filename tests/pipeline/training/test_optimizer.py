"""Parameter groups, the learning rate's course, and distillation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.training import decayed, distillation, rate_factor, sgd

from .small import make_model


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, 0.0),
        (0.05, 0.5),
        (0.1, 1.0),
        (0.325, 0.5 * (1 + math.sqrt(0.5))),
        (0.55, 0.5),
        (1.0, 0.0),
    ],
)
def test_cosine_after_linear_warm_up(share: float, expected: float) -> None:
    assert rate_factor("falls", share) == pytest.approx(expected, abs=1e-12)


def test_a_rate_that_holds_warms_up_and_stays_and_a_steady_one_is_there_at_once() -> None:
    assert [rate_factor("holds", share) for share in (0.0, 0.05, 0.1, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert [rate_factor("steady", share) for share in (0.0, 1.0)] == [1.0, 1.0]
    assert rate_factor("falls", 0.0, warmup=0.0) == 1.0


def test_weight_decay_is_for_weights_only() -> None:
    model = make_model()
    weights, others = decayed(model, 0.1, 5e-4)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in weights["params"]} == {"conv.weight", "linear.weight"}
    assert {names[id(p)] for p in others["params"]} == {
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "linear.bias",
    }
    assert (weights["lr"], weights["weight_decay"]) == (0.1, 5e-4)
    assert (others["lr"], others["weight_decay"]) == (0.1, 0.0)


def test_sgd_is_nesterov_momentum_with_the_peak_remembered() -> None:
    optimizer = sgd(decayed(make_model(), 0.25, 0.0))
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"]) == (0.9, True)
        assert (group["lr"], group["peak"]) == (0.25, 0.25)


def test_distillation_is_the_divergence_of_softened_logits() -> None:
    generator = np.random.default_rng(0)
    student, teacher = generator.standard_normal((2, 5, 3))

    def softened(logits: Any) -> Any:
        scaled = np.exp(logits / 3.0)
        return scaled / scaled.sum(1, keepdims=True)

    p, q = softened(teacher), softened(student)
    expected = 9.0 * (p * np.log(p / q)).sum() / 5
    found = distillation(torch.tensor(student), torch.tensor(teacher), temperature=3.0)
    assert float(found) == pytest.approx(expected)
    same = torch.tensor(teacher)
    assert float(distillation(same, same)) == pytest.approx(0.0, abs=1e-12)
