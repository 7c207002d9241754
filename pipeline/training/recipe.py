"""What a training is made of, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pipeline.training.logs import LoggerKind


@dataclass(frozen=True)
class Epoch:
    """One line of a training history."""

    epoch: int
    loss: float
    val_top1: float
    seconds: float
    extra: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, float]:
        values = asdict(self)
        return {**values.pop("extra"), **values}


@dataclass(frozen=True)
class Regime:
    """How every training of a run is done; the defaults are the plainest training."""

    micro_batch: int | None = None  # most images at once on a device; None: the whole step
    channels_last: bool = False
    ema: float = 0.0  # decay of the averaged weights; 0: no average
    warmup: float = 0.1  # share of the steps
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of its Beta distribution; 0: off
    cutmix: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """What one training is made of; equal recipes on equal data give equal weights."""

    label: str
    epochs: int
    batch: int  # images of one step, on all devices together
    seed: int
    fix: str  # what to try when the loss diverges
    regime: Regime = Regime()


@dataclass(frozen=True)
class Upkeep:
    """What is done beside a training and does not change its result."""

    minutes: float = 5.0  # between checkpoints inside an epoch; 0: as often as there can be one
    logger: LoggerKind = "none"
