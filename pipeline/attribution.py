"""Where accuracy was lost and won: the steps of the line compared on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = ("dense", "pruned", "finetuned", "onnx", "engine")
Z95 = 1.959964
Labels = NDArray[np.int64]  # (n,)


@dataclass(frozen=True)
class Step:
    """What one step did to the labels of n images."""

    before: str
    after: str
    n: int
    lost: int  # right before, wrong after
    won: int  # wrong before, right after
    changed: int  # another label than before, right or not
    change: float  # of top-1, as a share
    ci95: tuple[float, float]  # of the change
    p: float  # McNemar's exact test: of so unequal a lost and won by chance

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ci95": list(self.ci95)}


def attribute(predicted: Mapping[str, Labels], labels: Labels) -> tuple[Step, ...]:
    """Each step against the one before it, then all of them at once; steps may be missing."""
    known = [name for name in STEPS if name in predicted]
    pairs = list(pairwise(known))
    if len(pairs) > 1:
        pairs.append((known[0], known[-1]))
    return tuple(compare(before, after, predicted, labels) for before, after in pairs)


def compare(before: str, after: str, predicted: Mapping[str, Labels], labels: Labels) -> Step:
    """Two steps, paired by image."""
    was, is_now = predicted[before] == labels, predicted[after] == labels
    lost, won, n = int((was & ~is_now).sum()), int((is_now & ~was).sum()), len(labels)
    return Step(
        before,
        after,
        n,
        lost,
        won,
        int((predicted[before] != predicted[after]).sum()),
        (won - lost) / n,
        paired_ci95(won, lost, n),
        mcnemar(won, lost),
    )


def paired_ci95(won: int, lost: int, n: int) -> tuple[float, float]:
    """95 % interval of (won - lost) / n, paired: Bonett and Price's adjusted Wald interval (2012).

    One more image of each kind keeps it from closing where there are few.
    """
    up, down = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z95 * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def mcnemar(won: int, lost: int) -> float:
    """Two-sided exact p: as likely to be won as lost, how often are they as unequal as this?"""
    total = won + lost
    # in logarithms: of 50 000 images the binomials are beyond any float
    terms = [
        math.lgamma(total + 1)
        - math.lgamma(k + 1)
        - math.lgamma(total - k + 1)
        - total * math.log(2)
        for k in range(min(won, lost) + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, terms)))


def changed(predicted: Mapping[str, Labels], before: str, after: str) -> NDArray[np.int64]:
    """Indices of the images whose label changed, in order."""
    return np.flatnonzero(predicted[before] != predicted[after]).astype(np.int64)
