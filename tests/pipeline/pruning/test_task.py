from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.pruning.task import distilled_task, plain_task


class Fixed(nn.Module):
    """A teacher whose answer is known."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits * 1.0


IMAGES, LABELS = torch.zeros(2, 1, 4, 4), torch.tensor([0, 2])
LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])


def test_the_plain_task_is_cross_entropy_also_of_shares() -> None:
    assert plain_task(IMAGES, LOGITS, LABELS) == F.cross_entropy(LOGITS, LABELS)
    shares = F.one_hot(LABELS, 3).float()
    assert plain_task(IMAGES, LOGITS, shares) == pytest.approx(F.cross_entropy(LOGITS, LABELS))


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_a_student_that_says_what_the_teacher_says_is_left_with_its_share_of_the_labels(
    weight: float,
) -> None:
    task = distilled_task(Fixed(LOGITS.clone()), weight)
    expected = (1 - weight) * float(F.cross_entropy(LOGITS, LABELS))
    assert float(task(IMAGES, LOGITS, LABELS).detach()) == pytest.approx(expected, abs=1e-6)


def test_the_student_is_drawn_to_the_teacher_who_learns_nothing() -> None:
    teacher = Fixed(torch.flip(LOGITS, [1]))
    student = LOGITS.clone().requires_grad_(True)
    distilled_task(teacher, 1.0)(IMAGES, student, LABELS).backward()  # type: ignore[no-untyped-call]
    assert teacher.logits.grad is None
    assert student.grad is not None
    closer = (student - 0.1 * student.grad).detach()
    wanted = teacher.logits.detach()
    before, after = ((found - wanted).abs().sum() for found in (student.detach(), closer))
    assert float(after) < float(before)
