"""Mixed images and soft labels: mixup, cutmix and label smoothing, for any loss that takes them."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot
from torchvision.transforms import v2

from pipeline.training.recipe import Regime


class Mixing:
    """(images (n, C, H, W), labels (n,)) -> images and labels, (n, classes) shares where softened.

    Cross entropy with shares is cross entropy with label smoothing or mixed labels, so that no
    loss needs to know. Draws from torch's global generator.
    """

    def __init__(self, regime: Regime, classes: int) -> None:
        mixers: list[v2.Transform] = []
        if regime.mixup > 0:
            mixers.append(v2.MixUp(alpha=regime.mixup, num_classes=classes))
        if regime.cutmix > 0:
            mixers.append(v2.CutMix(alpha=regime.cutmix, num_classes=classes))
        self._mix = v2.RandomChoice(mixers) if mixers else None
        self._smoothing, self._classes = regime.label_smoothing, classes

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self._mix is not None:
            images, labels = self._mix(images, labels)
        if self._smoothing == 0:
            return images, labels
        if labels.dim() == 1:
            labels = one_hot(labels, self._classes)
        share = self._smoothing
        return images, labels.to(images.dtype) * (1 - share) + share / self._classes
