"""A goal of one process; of two, `tests/pipeline/training/test_processes.py`."""

from __future__ import annotations

from typing import cast

import pytest
from torch import Tensor

from pipeline.pruning.constraint import Goal
from pipeline.pruning.led import Led
from pipeline.pruning.select import Selector

from ..training.small import FABRIC


def cost(kept: Tensor) -> Tensor:
    return kept.sum(1)


@pytest.fixture
def goal() -> Goal:
    return Goal(lambda: cost, cast("Selector", None), 7.5)


def test_the_only_process_asks_its_own_goal(goal: Goal) -> None:
    led = Led(goal, FABRIC)
    assert led.numbers(lambda asked: [asked.aim, 3], 2) == [7.5, 3]
    assert led.smooth() is cost


def test_the_first_process_needs_a_goal() -> None:
    with pytest.raises(ValueError, match="needs a goal"):
        Led(None, FABRIC).numbers(lambda asked: [asked.aim], 1)
