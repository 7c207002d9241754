from __future__ import annotations

import pytest
import torch

from pipeline.pruning.row_scores import row_scores, standardised


def rows_and_weights(n: int = 5, k: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(n, k, generator=rng, dtype=torch.float64) + 0.3
    weights = torch.randn(k, generator=rng, dtype=torch.float64)
    return rows.requires_grad_(True), weights.requires_grad_(True)


def test_rows_have_mean_zero_and_norm_one() -> None:
    found = standardised(rows_and_weights()[0])
    torch.testing.assert_close(found.mean(1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(
        found.norm(dim=1), torch.ones(5, dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_the_score_is_that_of_the_standardised_rows_and_so_are_its_gradients() -> None:
    rows, weights = rows_and_weights()
    centred = rows - rows.mean(1, keepdim=True)
    plain = (centred / centred.norm(dim=1, keepdim=True)) @ weights
    torch.testing.assert_close(row_scores(rows, weights), plain, rtol=1e-5, atol=1e-6)
    pull = torch.linspace(-1, 2, 5, dtype=torch.float64)
    expected = torch.autograd.grad((plain * pull).sum(), (rows, weights))
    found = torch.autograd.grad((row_scores(rows, weights) * pull).sum(), (rows, weights))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    rows, weights = rows_and_weights()
    row_scores(rows.detach(), weights).sum().backward()
    assert weights.grad is not None
    weights.grad = None
    row_scores(rows, weights.detach()).sum().backward()
    assert rows.grad is not None
    assert weights.grad is None


def test_rows_without_a_shape_score_nothing_and_have_finite_gradients() -> None:
    rows = torch.full((2, 72), 0.5)
    rows[1] = 0
    rows.requires_grad_(True)
    weights = torch.linspace(-1, 1, 72).requires_grad_(True)
    scores = row_scores(rows, weights)
    assert float(scores.detach().abs().max()) < 0.02
    scores.sum().backward()
    assert rows.grad is not None
    assert bool(rows.grad.isfinite().all())
    assert weights.grad is not None
    assert bool(weights.grad.isfinite().all())


def test_no_copy_of_the_rows_is_kept_for_the_backward_pass() -> None:
    rows, weights = rows_and_weights(64, 576)
    kept: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        row_scores(rows, weights)
    large = [t for t in kept if t.numel() >= rows.numel()]
    assert [t.data_ptr() for t in large] == [rows.data_ptr()]


def test_scores_are_not_rounded_by_mixed_precision() -> None:
    rows, weights = (t.detach().float() for t in rows_and_weights())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = row_scores(rows, weights)
    assert mixed.dtype == torch.float32
    assert mixed.tolist() == pytest.approx(row_scores(rows, weights).tolist(), rel=1e-6)
