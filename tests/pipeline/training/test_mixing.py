"""Mixup, cutmix and label smoothing as soft labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.training.mixing import Mixing
from pipeline.training.recipe import Regime

from .small import equal, folder_of, recipe, train

LABELS = torch.tensor([0, 1, 2, 0])


def images() -> torch.Tensor:
    """(4, 3, 8, 8), image i full of i."""
    return torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8).clone()


def test_nothing_is_mixed_by_default() -> None:
    given = images()
    mixed, labels = Mixing(Regime(), 3)(given, LABELS)
    assert mixed is given
    assert labels is LABELS


def test_smoothed_labels_are_label_smoothing() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    _, soft = Mixing(Regime(label_smoothing=0.1), 3)(images(), LABELS)
    expected = nn.functional.cross_entropy(logits, LABELS, label_smoothing=0.1)
    assert nn.functional.cross_entropy(logits, soft).item() == pytest.approx(expected.item())


def test_mixup_mixes_images_and_labels_by_the_same_share() -> None:
    torch.manual_seed(3)
    mixed, soft = Mixing(Regime(mixup=1.0), 3)(images(), LABELS)
    share = soft[1, 1].item()  # image 1 is alone in its class
    assert 0 < share < 1
    assert mixed[1].unique().item() == pytest.approx(share * 1 + (1 - share) * 0)
    assert torch.allclose(soft.sum(1), torch.ones(4))


def test_cutmix_labels_say_how_much_of_each_image_is_seen() -> None:
    torch.manual_seed(1)
    mixed, soft = Mixing(Regime(cutmix=1.0), 3)(images(), LABELS)
    own = (mixed[1] == 1).float().mean().item()
    assert 0 < own < 1
    assert soft[1, 1].item() == pytest.approx(own)


def test_both_are_taken_in_turn() -> None:
    torch.manual_seed(0)
    mixing = Mixing(Regime(mixup=1.0, cutmix=1.0, label_smoothing=0.1), 3)
    kinds = {len(mixing(images(), LABELS)[0][1].unique()) for _ in range(20)}
    assert kinds >= {1, 2}  # mixup leaves one value in image 1, cutmix leaves two


def test_training_mixes(tmp_path: Path) -> None:
    plain, _ = train(folder_of(tmp_path, "plain"), recipe(1))
    for name, regime in {"mixup": {"mixup": 0.2}, "smooth": {"label_smoothing": 0.1}}.items():
        other, trainer = train(folder_of(tmp_path, name), recipe(1, **regime))
        assert not equal(plain, other)
        assert trainer.history[0].loss > 0
