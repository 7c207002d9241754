"""Budgets that are counts, and what goes together; the rest of `Budget` is in test_options."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.budget import Budget, Objective, Percentile, advice, contradiction
from pipeline.errors import DeployError
from pipeline.run import Run
from pipeline.stages import STAGES


@pytest.mark.parametrize(
    ("text", "dense", "most"),
    [
        ("1.2G", 7, 1_200_000_000),
        ("3.4M", 7, 3_400_000),
        ("0.5k", 7, 500),
        ("0.0001k", 7, 0),
        ("0.5x", 7, 3),  # no half channels' worth
        ("0.29x", 100, 29),  # 28.999... in binary
        ("0.6x", 10**15, 6 * 10**14),
    ],
)
def test_counts_are_exact(text: str, dense: int, most: int) -> None:
    budget = Budget.parse(text)
    assert budget.as_count(dense) == most
    assert str(budget) == text


GOOD: list[tuple[Objective, str, Percentile]] = [
    ("latency", "4ms", "p99"),
    ("latency", "0.6x", "p50"),
    ("flops", "0.6x", "p50"),
    ("flops", "1.2G", "p50"),
    ("params", "3.4M", "p50"),
]


@pytest.mark.parametrize(("objective", "budget", "percentile"), GOOD)
def test_what_goes_together(objective: Objective, budget: str, percentile: Percentile) -> None:
    assert contradiction(objective, Budget.parse(budget), percentile) is None


@pytest.mark.parametrize(
    ("floor", "room", "words"),
    [
        (0.2, 1.05, "at least 0.21x"),
        (0.5, 1.0, "at least 0.50x"),
        (0.97, 1.05, "at least 0.99x"),
        (0.995, 1.0, "fewer channels hardly help"),
    ],
)
def test_what_is_advised_can_be_asked_for(floor: float, room: float, words: str) -> None:
    assert words in advice(floor, room=room)


@pytest.mark.parametrize(
    ("flags", "words", "fix"),
    [
        ({"budget": "1.2G"}, "1.2G is a count, and the objective is latency", "flops or params"),
        ({"objective": "flops", "budget": "4ms"}, "4ms is a latency, and the obj", "0.6x or 1.2G"),
        (
            {"objective": "params", "percentile": "p99"},
            "p99 of params means nothing: a count has no percentiles",
            "leave --percentile at p50",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(
    tmp_path: Path, flags: dict[str, str], words: str, fix: str
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(DeployError) as caught:
        Run(folder, STAGES).resolve(flags)
    assert words in caught.value.message
    assert fix in str(caught.value.fix)
    assert not folder.exists()


def test_a_run_that_changes_its_objective_is_held_to_what_it_used_before(tmp_path: Path) -> None:
    Run(tmp_path, STAGES).resolve({"budget": "4ms"})
    with pytest.raises(DeployError, match="4ms is a latency"):
        Run(tmp_path, STAGES).resolve({"objective": "flops"})
    Run(tmp_path, STAGES).resolve({"objective": "flops", "budget": "0.5x"})
