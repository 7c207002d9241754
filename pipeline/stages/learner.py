"""What of prune trains: the method on the dense model, in one process or in several.

Several are together only while something trains: in between the first one measures, and whoever
waited beside it would be heard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from calibration.widths import Plan
from pipeline.errors import MissingInputError
from pipeline.evaluation import top1
from pipeline.options import PrepareOptions, PruneOptions
from pipeline.pruning.constraint import Goal
from pipeline.pruning.gates import GateForm
from pipeline.pruning.magnitude import GivenPlan
from pipeline.pruning.masking import masked
from pipeline.pruning.pruner import Pruner, make_pruner
from pipeline.pruning.task import TaskLoss, distilled_task, plain_task
from pipeline.pruning.wgates import GateSettings
from pipeline.run import Context
from pipeline.serving import target_of
from pipeline.stages.common import (
    data_of,
    dense_model,
    fabric_of,
    recipe_of,
    skeleton_of,
    trainer_of,
)
from pipeline.stages.company import company, told_by_first
from pipeline.training import Course, Epoch, Trainer, decayed, sgd


@dataclass(frozen=True)
class Lesson:
    """One training, as all who take part in it know it; the weights to begin with are sent."""

    steps: Mapping[str, int]  # fast widths, by group
    round: int = 0  # of the closed loop, for gates; behind masks there is none
    plan: Plan | None = None  # whose masks the weights are trained behind
    course: Course = "holds"  # of their rate

    def to_json(self) -> dict[str, Any]:
        plan = None if self.plan is None else self.plan.to_json()
        return {"steps": dict(self.steps), "round": self.round, "plan": plan, "course": self.course}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        plan = document["plan"]
        return cls(**{**document, "plan": None if plan is None else Plan.from_json(plan)})


class Learner:
    """One method on one dense model."""

    def __init__(self, context: Context, steps: Mapping[str, int]) -> None:
        """`steps` are the target's fast widths, by group."""
        self.context, self.steps = context, steps
        self.options = context.options(PruneOptions)
        self.prepare = context.run.options("prepare", PrepareOptions)
        self.skeleton = skeleton_of(context.run)
        self.model = dense_model(context)
        self.task = self._task()
        self.pruner = self._pruner()
        self.epochs = self.pruner.solving_epochs(self.options.gate_epochs)
        self.history: list[Epoch] = []

    def solve(self, number: int, goal: Goal) -> None:
        """Let the method learn; later rounds start where the last one ended and take an epoch."""
        if self.epochs == 0:  # a baseline that needs no training to decide
            return
        lesson = Lesson(self.steps, number)
        with company(self.context, lesson.to_json()):
            self._solve(lesson, goal)

    def train_on_masks(self, plan: Plan) -> list[Epoch]:
        """The method's remaining epochs: weights only, behind the plan's fixed masks."""
        if self.options.gate_epochs == self.epochs:
            return []
        lesson = Lesson(self.steps, plan=plan, course="steady" if self.history else "holds")
        with company(self.context, lesson.to_json()):
            return self._train_on_masks(lesson)

    def _solve(self, lesson: Lesson, goal: Goal | None) -> None:
        first = lesson.round == 1
        label = "gates" if first else f"gates round {lesson.round}"
        trainer = self._trainer(label, self.epochs if first else 1)
        self.pruner.solve(trainer, goal, ramp=first)
        self.history += trainer.history

    def _train_on_masks(self, lesson: Lesson) -> list[Epoch]:
        assert lesson.plan is not None
        data, fabric = data_of(self.context), fabric_of(self.context.run)
        trainer = self._trainer("masked weights", self.options.gate_epochs - self.epochs)
        decay, rate = self.prepare.weight_decay, self.options.weight_lr
        self.model.to(fabric.device)
        with masked(self.model, self.skeleton.groups, lesson.plan):
            return trainer.train(
                self.model,
                sgd(decayed(self.model, rate, decay, lesson.course)),
                lambda images, labels: self.task(images, self.model(images), labels),
                evaluate=lambda: top1(self.model, data, "val", fabric),
            )

    def _pruner(self) -> Pruner:
        if self.options.plan is not None:
            return GivenPlan(self.model, self.skeleton, read_plan(self.options.plan))
        return make_pruner(
            self.options.method,
            self.model,
            self.skeleton,
            gate_settings(self.options, self.prepare, self.steps),
            multiple=target_of(self.context.run).channel_multiple,
            task=self.task,
        )

    def _task(self) -> TaskLoss:
        weight = self.options.gate_distill
        if weight == 0:
            return plain_task
        teacher = dense_model(self.context).to(fabric_of(self.context.run).device)
        return distilled_task(teacher, weight)

    def _trainer(self, label: str, epochs: int) -> Trainer:
        fix = "lower --weight-lr or --gate-lr"
        recipe = recipe_of(self.context, self.model, label, epochs, fix)
        # averaged weights would open and close other gates than those that were trained
        plain = replace(recipe, regime=replace(recipe.regime, ema=0.0))
        return trainer_of(self.context, plain)


def learn_along(context: Context) -> None:
    """Take part in the training that another process leads."""
    lesson = Lesson.from_json(told_by_first(context))
    with company(context):
        learner = Learner(context, lesson.steps)
        if lesson.plan is None:
            learner._solve(lesson, goal=None)
        else:
            learner._train_on_masks(lesson)


def read_plan(path: Path) -> Plan:
    """A plan that was decided elsewhere; MissingInputError or GroupsError if it is none."""
    again = "give a plan.json that `pipeline prune` wrote for this network"
    try:
        return Plan.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, RecursionError, ValueError) as error:
        raise MissingInputError(f"--plan {path}: {error}", fix=again) from error


def gate_settings(
    options: PruneOptions, prepare: PrepareOptions, steps: Mapping[str, int]
) -> GateSettings:
    """What the options say of gates; `steps` are the target's fast widths, by group."""
    return GateSettings(
        gate_lr=options.gate_lr,
        weight_lr=options.weight_lr,
        weight_decay=prepare.weight_decay,
        dual_lr=options.dual_lr,
        form=GateForm(
            surrogate=options.surrogate,
            start=options.gate_start,
            detach_input=options.detach_gate_input,
            steps=steps if options.snap_gates else {},
        ),
        mode=options.budget_mode,
        alpha=options.alpha,
        live_share=options.live_share,
        ramp_share=options.ramp_share,
        min_width=options.min_width,
    )
