"""A training on disk: safetensors and JSON, never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from pipeline.files import write_atomically
from pipeline.run import Reporter
from pipeline.training.recipe import Epoch, Recipe

Tensors = dict[str, Tensor]


@dataclass
class Progress:
    """How far a training is: whole epochs, and the steps of the one that has begun."""

    history: list[Epoch] = field(default_factory=list)
    state: dict[str, float] = field(default_factory=dict)  # numbers of the method
    steps: int = 0  # done in the epoch that has begun
    loss: float = 0.0  # sum over those steps
    seconds: float = 0.0  # spent on them
    micro_batch: int = 0  # most images at once on a device

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        values = {**document, "history": [Epoch(**epoch) for epoch in document["history"]]}
        return cls(**values)

    def __str__(self) -> str:
        done = f"after epoch {len(self.history)}" if self.history else "in epoch 1"
        return f"{done}, step {self.steps}" if self.steps else done


class Checkpoint:
    """One file, replaced as a whole; what another recipe left there is not read."""

    def __init__(self, folder: Path, recipe: Recipe, reporter: Reporter) -> None:
        self.path = folder / f"{recipe.label.replace(' ', '-')}.checkpoint.safetensors"
        self._recipe, self._reporter = recipe, reporter

    def write(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        document = {**asdict(progress), "recipe": asdict(self._recipe)}
        plain = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in tensors.items()
        }
        write_atomically(self.path, save(plain, {"training": json.dumps(document)}))

    def read(self) -> tuple[Progress, Tensors] | None:
        """None if there is no checkpoint of this recipe."""
        if not self.path.exists():
            return None
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                document = json.loads(file.metadata()["training"])
            tensors = load(self.path.read_bytes())
        except safetensors.SafetensorError as damage:  # after a power cut files can be empty
            self._reporter.say(
                f"{self._recipe.label}: starts anew, its checkpoint is damaged: {damage}"
            )
            return None
        if document.pop("recipe") != asdict(self._recipe):
            return None
        return Progress.from_json(document), tensors
