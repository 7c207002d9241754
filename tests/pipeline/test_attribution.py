"""Paired comparisons against published numbers, SciPy, and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.attribution import attribute, changed, compare, mcnemar, paired_ci95

LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 3])
DENSE = np.array([0, 1, 2, 3, 0, 1, 2, 0])  # one wrong
PRUNED = np.array([0, 1, 0, 0, 0, 1, 2, 3])  # two lost, one won
ENGINE = np.array([0, 1, 0, 1, 0, 1, 2, 3])  # wrong as before, but otherwise


def test_a_step_counts_what_was_lost_won_and_changed() -> None:
    step = compare("dense", "pruned", {"dense": DENSE, "pruned": PRUNED}, LABELS)
    assert (step.n, step.lost, step.won, step.changed) == (8, 2, 1, 3)
    assert step.change == pytest.approx(-1 / 8)
    same = compare("pruned", "engine", {"pruned": PRUNED, "engine": ENGINE}, LABELS)
    assert (same.lost, same.won, same.changed, same.change, same.p) == (0, 0, 1, 0.0, 1.0)
    assert changed({"pruned": PRUNED, "engine": ENGINE}, "pruned", "engine").tolist() == [3]


def test_steps_follow_the_line_and_end_with_the_whole() -> None:
    predicted = {"engine": ENGINE, "dense": DENSE, "pruned": PRUNED}
    steps = attribute(predicted, LABELS)
    pairs = [("dense", "pruned"), ("pruned", "engine"), ("dense", "engine")]
    assert [(step.before, step.after) for step in steps] == pairs
    assert sum(step.change for step in steps[:-1]) == pytest.approx(steps[-1].change)
    assert len(attribute({"onnx": DENSE, "engine": ENGINE}, LABELS)) == 1


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (5, 5), (2, 9), (40, 20), (0, 12), (900, 1000)])
def test_mcnemar_is_the_exact_binomial_test(won: int, lost: int) -> None:
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar(won, lost) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_a_whole_imagenet() -> None:
    assert 0 < mcnemar(20_000, 20_500) < 0.02


@pytest.mark.parametrize(("won_share", "lost_share", "n"), [(0.02, 0.05, 450), (0.01, 0.01, 200)])
def test_interval_covers_the_true_change(won_share: float, lost_share: float, n: int) -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, [won_share, lost_share, 1 - won_share - lost_share], 4000)
    inside = [
        low <= won_share - lost_share <= high
        for low, high in (paired_ci95(int(won), int(lost), n) for won, lost, _ in draws)
    ]
    assert 0.94 <= np.mean(inside) <= 0.996  # careful where hardly any image changes


def test_interval_stays_open_where_nothing_changed() -> None:
    low, high = paired_ci95(0, 0, 450)
    assert -0.01 < low < 0 < high < 0.01
    assert paired_ci95(3, 0, 3)[1] == 1.0
