"""Losses that nn does not have."""

from __future__ import annotations

from torch import Tensor, nn


def distillation(student: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    """KL divergence of softened logits (Hinton et al. 2015), scaled by the temperature squared."""
    return temperature**2 * nn.functional.kl_div(
        nn.functional.log_softmax(student / temperature, 1),
        nn.functional.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
