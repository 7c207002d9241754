"""The arms of the accuracy study, and how much each form of it trains."""

from __future__ import annotations

from dataclasses import dataclass

BASELINES: dict[str, tuple[str, ...]] = {
    "uniform": ("--method", "uniform"),
    "l1": ("--method", "l1"),
    "group-norm": ("--method", "group-norm"),
    "bn-scale": ("--method", "bn-scale"),
    "random": ("--method", "random"),
}
ABLATIONS: dict[str, tuple[str, ...]] = {
    "wgates tanh": ("--surrogate", "tanh"),
    "wgates ste": ("--surrogate", "ste"),
    "wgates drawn": ("--gate-start", "drawn"),
    "wgates shuffled": ("--gate-start", "shuffled"),
    "wgates detached": ("--detach-gate-input",),
    "wgates live half": ("--live-share", "50%"),
    "wgates live nine tenths": ("--live-share", "90%"),
    "wgates gate distillation": ("--gate-distill", "0.5"),
    "wgates no distillation": ("--distill", "0"),
    "wgates no snapping": ("--no-snap-gates",),
    "wgates penalty": ("--budget-mode", "penalty", "--alpha", "1"),
    "wgates slow": ("--gate-lr", "0.3"),
}


@dataclass(frozen=True)
class Form:
    """How much is trained."""

    networks: tuple[str, ...]
    seeds: int
    images: int
    adapt_epochs: int
    gate_epochs: int
    finetune_epochs: int
    samples: int = 300  # networks measured in a calibration
    processes: int = 12
    budgets: tuple[float, ...] = (0.8, 0.65, 0.5)


FORMS = {
    "full": Form(("resnet20", "resnet56"), 3, 45_000, 5, 20, 40),
    "small": Form(("resnet20",), 1, 10_000, 3, 6, 10),
    "trial": Form(("resnet20",), 1, 512, 1, 2, 1, samples=40, processes=2, budgets=(0.8,)),
}
