"""What a training works on, and its tensors as a checkpoint has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.training.average import WeightAverage
from pipeline.training.checkpoint import Tensors
from pipeline.training.steps import Steps


@dataclass(frozen=True)
class Session:
    """The objects of one call of `train`."""

    trained: nn.Module
    optimizer: torch.optim.Optimizer
    steps: Steps
    average: WeightAverage | None
    on_step: Callable[[], None]

    def tensors(self, fabric: Fabric) -> Tensors:
        """All that has to come back, by name."""
        found = {f"module.{name}": value for name, value in self.trained.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    found[f"optimizer.{index}.{slot}"] = value
        if self.average is not None:
            found |= {f"average.{name}": t for name, t in self.average.state_dict().items()}
        for name, number in fabric.strategy.precision.state_dict().items():
            kind = torch.int64 if isinstance(number, int) else torch.float64
            found[f"precision.{name}"] = torch.tensor(number, dtype=kind)
        return found

    def load(self, tensors: Tensors, fabric: Fabric) -> None:
        self.trained.load_state_dict(_under("module.", tensors))
        slots: dict[int, Tensors] = {}
        for name, tensor in _under("optimizer.", tensors).items():
            index, slot = name.split(".", 1)
            slots.setdefault(int(index), {})[slot] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        if self.average is not None:
            self.average.load_state_dict(_under("average.", tensors))
        if scaling := _under("precision.", tensors):
            numbers = {name: value.item() for name, value in scaling.items()}
            fabric.strategy.precision.load_state_dict(numbers)


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
