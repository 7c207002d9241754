"""The arms of the accuracy study, and how much each form of it trains."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Arm:
    """What is different about one way to prune: flags of two stages, and how epochs are split."""

    prune: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()
    gates: float = 1.0  # times the form's epochs with gates; fine-tuning has the rest
    plan_of: str = ""  # the arm, made before, whose plan it is given


# their plans need no training: all epochs are one fine-tuning
BASELINES: dict[str, Arm] = {
    name: Arm(("--method", name), gates=0.0)
    for name in ("uniform", "l1", "group-norm", "bn-scale", "random")
}
GIVEN = Arm(gates=0.0)  # a plan of torch-pruning's
SELECTED = ("l1", "group-norm", "bn-scale")  # by the selection that W-Gates is given to, too
ABLATIONS: dict[str, Arm] = {
    "wgates tanh": Arm(("--surrogate", "tanh")),
    "wgates ste": Arm(("--surrogate", "ste")),
    "wgates norm": Arm(("--gate-start", "norm")),
    "wgates drawn": Arm(("--gate-start", "drawn")),
    "wgates shuffled": Arm(("--gate-start", "shuffled")),
    "wgates attached": Arm(("--no-detach-gate-input",)),
    "wgates half the gate epochs": Arm(gates=0.5),
    "wgates twice the gate epochs": Arm(gates=2.0),
    "wgates at once": Arm(("--ramp-share", "0")),
    "wgates live half": Arm(("--live-share", "50%")),
    "wgates live nine tenths": Arm(("--live-share", "90%")),
    "wgates no gate distillation": Arm(("--gate-distill", "0")),
    "wgates no distillation": Arm(finetune=("--distill", "0")),
    "wgates bound without snapping": Arm(("--budget-mode", "bound", "--no-snap-gates")),
    "wgates bound": Arm(("--budget-mode", "bound")),
    "wgates penalty": Arm(("--budget-mode", "penalty", "--alpha", "1")),
    # W-Gates' channels, all epochs after pruning: what the choice does without the gated training
    "wgates plan from the start": Arm(gates=0.0, plan_of="wgates"),
    "wgates attached from the start": Arm(gates=0.0, plan_of="wgates attached"),
    # ... and what the course of the learning rate does: the gated epochs behind the plan's masks
    "wgates plan on masks": Arm(plan_of="wgates"),
    "wgates by count": Arm(("--worth", "count")),
    "wgates by single losses": Arm(("--worth-plans", "1")),
    "wgates without steps": Arm(("--worth-steps", "0")),
    "l1 without steps": Arm(("--method", "l1", "--worth-steps", "0"), gates=0.0),
    "bn-scale without steps": Arm(("--method", "bn-scale", "--worth-steps", "0"), gates=0.0),
    "l1 by count": Arm(("--method", "l1", "--worth", "count"), gates=0.0),
    "wgates slow": Arm(("--gate-lr", "0.3")),
    "wgates still": Arm(("--gate-lr", "0")),
    "wgates weights slower": Arm(("--weight-lr", "0.02")),
    "wgates twice the rate": Arm(("--weight-lr", "0.1"), ("--finetune-lr", "0.1")),
    **{
        f"{name} twice the rate": Arm(finetune=("--finetune-lr", "0.1"), gates=0.0, plan_of=name)
        for name in ("l1", "bn-scale")
    },
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
    remove_blocks: bool = True
    worth: str = "loss"  # of a channel, where an arm says nothing else

    def to_json(self) -> dict[str, Any]:
        """Its fields; older results have no word of blocks where they may go."""
        found = asdict(self)
        if self.remove_blocks:
            del found["remove_blocks"]
        return found


FORMS = {
    "full": Form(("resnet20", "resnet56"), 3, 45_000, 5, 20, 40),
    "small": Form(("resnet20",), 1, 10_000, 3, 3, 9),
    # as many epochs as `pipeline run` takes where nothing else is asked for
    "long": Form(("resnet20",), 1, 10_000, 3, 12, 30, budgets=(0.65,)),
    # where blocks go, few groups are narrowed, so that scores have few channels to choose
    "thin": Form(("resnet20",), 1, 10_000, 3, 3, 9, budgets=(0.65,), remove_blocks=False),
    "trial": Form(("resnet20",), 1, 512, 1, 2, 1, samples=40, processes=2, budgets=(0.8,)),
}
