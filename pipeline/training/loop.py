"""The one training loop: seeded epochs, checkpoint every epoch, best by validation, stop on NaN."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from lightning_fabric import Fabric
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.data.base import ImageData
from pipeline.errors import DeployError, TrainingError
from pipeline.evaluation import Top1
from pipeline.files import write_atomically
from pipeline.run import Reporter

WARMUP_SHARE = 0.1

Loss = Callable[[Tensor, Tensor], Tensor]  # (images, labels) -> scalar


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
class Recipe:
    """What one training is made of; equal recipes on equal data give equal weights."""

    label: str
    epochs: int
    batch: int
    seed: int
    fix: str  # what to try when the loss diverges


def make_fabric(device: str, precision: str) -> Fabric:
    """Device and precision by lightning-fabric; one device. DeployError if that cannot be had."""
    try:
        with warnings.catch_warnings():
            # fabric would replace the precision and only warn
            warnings.filterwarnings("error", message=".*is not supported on CPU")
            return Fabric(accelerator=device, devices=1, precision=precision)  # type: ignore[arg-type]
    except (ValueError, RuntimeError, UserWarning) as error:
        raise DeployError(
            f"cannot train on {device!r} in precision {precision!r}: {error}",
            fix="use --device auto or cpu, and --train-precision 32-true or bf16-mixed",
        ) from error


def sgd(groups: list[dict[str, Any]]) -> torch.optim.SGD:
    """Nesterov momentum 0.9; each group names its own `lr` (peak) and `weight_decay`."""
    return torch.optim.SGD(
        [{**group, "peak": group["lr"]} for group in groups], lr=0.1, momentum=0.9, nesterov=True
    )


def decayed(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with weight decay on weights only, not on norms and biases."""
    weights = [p for p in module.parameters() if p.dim() > 1]
    others = [p for p in module.parameters() if p.dim() <= 1]
    return [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]


def cosine(share: float) -> float:
    """Learning-rate factor after `share` of the steps: linear warm-up, then cosine to zero."""
    if share < WARMUP_SHARE:
        return share / WARMUP_SHARE
    return 0.5 * (1 + math.cos(math.pi * (share - WARMUP_SHARE) / (1 - WARMUP_SHARE)))


class Trainer:
    """Trains `trained` (all modules whose tensors change, as one) and keeps its state on disk.

    `trained` is checkpointed after every epoch together with optimizer, history and whatever
    `state` adds; a killed run repeats at most one epoch, and repeats it exactly.
    """

    def __init__(
        self, fabric: Fabric, data: ImageData, folder: Path, reporter: Reporter, recipe: Recipe
    ) -> None:
        self.fabric, self.data, self.folder = fabric, data, folder
        self.reporter, self.recipe = reporter, recipe
        self.history: list[Epoch] = []
        self.state: dict[str, float] = {}  # numbers of the method

    @property
    def steps_per_epoch(self) -> int:
        size, batch = self.data.size("train"), self.recipe.batch
        # a last batch of one image is dropped: batch norm cannot be trained on it
        return max(1, size // batch + (size % batch > 1))

    def train(
        self,
        trained: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        *,
        evaluate: Callable[[], Top1],
        on_step: Callable[[], None] = lambda: None,
    ) -> list[Epoch]:
        """Run the epochs not done yet and return the whole history.

        `evaluate` gives each epoch's validation top-1; `on_step` follows every optimiser step.
        Numbers in `state` come back after a resume and are part of the history.
        """
        self._resume(trained, optimizer)
        while len(self.history) < self.recipe.epochs:
            number = len(self.history)
            started = time.perf_counter()
            trained.train()
            torch.manual_seed(self.recipe.seed * 100_003 + number)
            mean_loss = self._epoch(number, optimizer, loss, on_step)
            self._require_finite(trained, number)
            top1 = evaluate().top1
            seconds = time.perf_counter() - started
            self.history.append(Epoch(number + 1, mean_loss, top1, seconds, dict(self.state)))
            self._checkpoint(trained, optimizer)
            note = f"loss {mean_loss:.3f}, validation {top1:.2%}"
            self.reporter.progress(self.recipe.label, number + 1, self.recipe.epochs, note)
        return self.history

    def _epoch(
        self,
        number: int,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        on_step: Callable[[], None],
    ) -> float:
        total, steps = 0.0, 0
        batches = self.data.train_batches(self.recipe.batch, seed=self.recipe.seed, epoch=number)
        for images, labels in batches:
            step = number * self.steps_per_epoch + steps
            share = step / (self.recipe.epochs * self.steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * (cosine(share) if group.get("scheduled", True) else 1)
            with self.fabric.autocast():
                value = loss(images.to(self.fabric.device), labels.to(self.fabric.device))
            current = float(value.detach())
            if not math.isfinite(current):
                raise self._diverged(f"the loss became {current} in step {steps + 1}", number)
            optimizer.zero_grad()
            self.fabric.backward(value)
            optimizer.step()
            on_step()
            total, steps = total + current, steps + 1
        return total / max(steps, 1)

    def _require_finite(self, trained: nn.Module, number: int) -> None:
        """The last step of an epoch has no loss after it that would show its harm."""
        for name, value in trained.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise self._diverged(f"{name} became NaN or infinite at the end", number)

    def _diverged(self, what: str, number: int) -> TrainingError:
        kept = f"the checkpoint of epoch {number} is kept" if number else "there is no checkpoint"
        return TrainingError(
            f"{self.recipe.label}: {what} of epoch {number + 1}; {kept}", fix=self.recipe.fix
        )

    # checkpoints: safetensors and JSON, never pickle

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.recipe.label.replace(' ', '-')}.checkpoint.safetensors"

    def _checkpoint(self, trained: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        tensors = {f"module.{name}": value for name, value in trained.state_dict().items()}
        for index, slots in optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{slot}"] = value
        document = {
            "history": [asdict(epoch) for epoch in self.history],
            "state": self.state,
            "recipe": asdict(self.recipe),
        }
        fresh = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        write_atomically(self._file, save(fresh, {"training": json.dumps(document)}))

    def _resume(self, trained: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        document, tensors = self._read_checkpoint()
        if document is None:
            return
        own = {n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")}
        trained.load_state_dict(own)
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, slot = name.split(".", 2)
                slots.setdefault(int(index), {})[slot] = tensor
        optimizer.load_state_dict(
            {"state": slots, "param_groups": optimizer.state_dict()["param_groups"]}
        )
        self.history = [Epoch(**epoch) for epoch in document["history"]]
        self.state = document["state"]
        self.reporter.say(f"{self.recipe.label}: resumed after epoch {len(self.history)}")

    def _read_checkpoint(self) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        """History, state and tensors; None if there is no checkpoint of this recipe."""
        if not self._file.exists():
            return None, {}
        try:
            with safetensors.safe_open(self._file, "pt") as file:
                document = json.loads(file.metadata()["training"])
            tensors = load(self._file.read_bytes())
        except safetensors.SafetensorError as damage:  # after a power cut files can be empty
            self.reporter.say(
                f"{self.recipe.label}: starts anew, its checkpoint is damaged: {damage}"
            )
            return None, {}
        return (document if document["recipe"] == asdict(self.recipe) else None), tensors


def distillation(student: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    """KL divergence of softened logits (Hinton et al. 2015), scaled by the temperature squared."""
    return temperature**2 * nn.functional.kl_div(
        nn.functional.log_softmax(student / temperature, 1),
        nn.functional.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
