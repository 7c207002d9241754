"""Fewer images at once where memory runs out."""

from __future__ import annotations

import pytest
import torch

from pipeline.memory import with_memory


class Attempt:
    """Holds so many images at once, and notes how many were asked of it."""

    def __init__(self, most: int, error: RuntimeError | None = None) -> None:
        self.most, self.error = most, error or torch.OutOfMemoryError("CUDA out of memory")
        self.asked: list[int] = []

    def __call__(self, at_once: int) -> str:
        self.asked.append(at_once)
        if at_once > self.most:
            raise self.error
        return "done"


def test_half_as_many_until_memory_holds_them() -> None:
    attempt = Attempt(20)
    assert with_memory(attempt, 100) == ("done", 12)
    assert attempt.asked == [100, 50, 25, 12]


def test_the_fewest_are_tried_and_then_it_ends() -> None:
    attempt = Attempt(1)
    with pytest.raises(torch.OutOfMemoryError):
        with_memory(attempt, 5, least=2)
    assert attempt.asked == [5, 2]


def test_another_fault_ends_it_at_once() -> None:
    attempt = Attempt(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        with_memory(attempt, 8)
    assert attempt.asked == [8]
