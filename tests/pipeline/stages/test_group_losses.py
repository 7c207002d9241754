from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from calibration.widths import WidthVector
from pipeline.options import PruneOptions
from pipeline.pruning.select import Selector
from pipeline.pruning.together import variants
from pipeline.pruning.worth import Worth, by_count
from pipeline.run import Context, Run
from pipeline.stages import STAGES
from pipeline.stages.group_losses import (
    MEASURED,
    TOGETHER,
    TRAINED,
    Subject,
    _to_train,
    wants_losses,
    weighed_together,
)

from ...calibration.chain import chain
from .test_counterfactual import Silent


@pytest.mark.parametrize("method", ["wgates", "l1", "group-norm", "bn-scale"])
def test_losses_are_asked_for_only_if_they_are_wanted(method: str) -> None:
    assert wants_losses(PruneOptions(method=method))
    assert not wants_losses(PruneOptions(method=method, worth="count"))


def test_where_widths_are_given_losses_decide_nothing() -> None:
    assert not wants_losses(PruneOptions(method="uniform"))
    assert not wants_losses(PruneOptions(method="random"))
    assert not wants_losses(PruneOptions(plan=Path("plan.json")))


def answered(tmp_path: Path, *answers: dict[str, Any]) -> tuple[Worth, list[Worth]]:
    """The worth that decides after these answers about plans, and all that were asked."""
    skeleton = chain((32, 32, 32))
    scores = {name: np.ones(32) for name in skeleton.groups.names}
    plans = [{"kept": [32, 32, 32], **answer} for answer in answers]
    (tmp_path / TOGETHER).write_text(json.dumps({"groups": skeleton.groups.names, "plans": plans}))
    context = Context(Run(tmp_path / "run", STAGES), STAGES["prune"], tmp_path, Silent())
    context.run.folder.mkdir()
    worth = by_count(scores)
    selector = Selector(skeleton, lambda kept: kept.sum(1), 16, measured=worth)
    subject = Subject(context, nn.Identity(), selector, scores)
    found, fits = weighed_together(subject, 64.0, lambda plan: pytest.fail("was asked already"))
    assert fits == any(answer.get("fits") for answer in answers)
    return found, variants(worth, skeleton.groups, PruneOptions().worth_plans)


def same(one: Worth, other: Worth) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_a_few_steps_decide_between_the_best(tmp_path: Path) -> None:
    found, asked = answered(
        tmp_path,
        {"variant": 0, "loss": 2.0, "after_steps": 0.9},
        {"variant": 3, "loss": 2.1, "after_steps": 0.7, "fits": True},
        {"variant": 5, "loss": 2.2},
    )
    assert same(found, asked[3])


def test_without_steps_the_loss_itself_decides(tmp_path: Path) -> None:
    found, asked = answered(tmp_path, {"variant": 4, "loss": 2.0}, {"variant": 6, "loss": 1.5})
    assert same(found, asked[6])


def test_where_no_plan_has_a_loss_the_single_losses_decide(tmp_path: Path) -> None:
    found, asked = answered(tmp_path)
    assert same(found, asked[0])


def told(*losses: float) -> dict[WidthVector, dict[str, Any]]:
    return {WidthVector(("conv",), (8 * n,)): {"loss": x} for n, x in enumerate(losses, 1)}


def test_plans_that_fit_are_trained_the_best_first() -> None:
    answers = told(2.0, 1.0, 3.0, 1.5, 1.2, 1.1, 1.4)
    slow = WidthVector(("conv",), (16,)), WidthVector(("conv",), (40,))
    found = _to_train(answers, lambda widths: widths not in slow)
    assert [answers[widths]["loss"] for widths in found] == [1.1, 1.4, 1.5, 2.0]
    fits = [answer.get("fits") for answer in answers.values()]
    assert fits == [True, False, None, True, False, True, True]  # none is measured for nothing


def test_plans_are_judged_by_what_is_known_once_all_were_timed() -> None:
    answers, times = told(*range(MEASURED + 2)), Counter[WidthVector]()
    slowed, best = WidthVector(("conv",), (16,)), WidthVector(("conv",), (8,))

    def fits(widths: WidthVector) -> bool:
        times[widths] += 1
        return times[widths] == (2 if widths == slowed else 1) or widths not in (best, slowed)

    found = _to_train(answers, fits)
    assert [answers[widths]["loss"] for widths in found] == [1, 2, 3, 4]
    assert [answers[widths]["fits"] for widths in (best, slowed)] == [False, True]


def test_where_no_plan_fits_the_best_are_trained() -> None:
    answers = told(*range(MEASURED + 2))
    found = _to_train(answers, lambda widths: False)
    assert [answers[widths]["loss"] for widths in found] == list(range(TRAINED))
    assert sum("fits" in answer for answer in answers.values()) == MEASURED
