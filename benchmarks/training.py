"""How fast the training loop is beside a bare PyTorch loop on the same batches.

    python -m benchmarks.training [--model wgates:resnet20] [--device cuda] [--turns 8] [--steps 20]

Both train the same network on the same augmented images with the same optimiser. The bare loop
does nothing but forward, cross entropy, backward and step. Turns alternate, in reversed order
every second time, and the ratio is that of paired turns. A turn is timed from its first step to
its last; what stands around an epoch (evaluation, one checkpoint) is not part of it.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.common import environment, write_result
from pipeline.data.base import ImageData
from pipeline.data.sources import load_data
from pipeline.evaluation import Top1
from pipeline.models.zoo import create_model
from pipeline.training import Recipe, Regime, Trainer, Upkeep, decayed, make_fabric, sgd

LIMIT = 1.10  # the goal
LR, WEIGHT_DECAY = 0.05, 5e-4
REGIMES = {
    "plain": Regime(),
    "average and smoothing": Regime(ema=0.999, label_smoothing=0.1),
    "channels last": Regime(channels_last=True),
}


class Silent:
    def progress(self, label: str, done: int, total: int, note: str = "") -> None: ...

    def say(self, text: str) -> None: ...


class Clock:
    """Milliseconds a step, from the end of the first to the end of the last."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends: list[float] = []

    def tick(self, *, wait: bool = False) -> None:
        if wait and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._ends.append(time.perf_counter())

    def step_ms(self) -> float:
        return 1000 * (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)


def bare(model: nn.Module, data: ImageData, batch: int, steps: int, clock: Clock) -> None:
    device = next(model.parameters()).device
    optimizer = sgd(decayed(model, LR, WEIGHT_DECAY))
    model.train()
    batches = data.on(device).train_batches(batch, seed=0, epoch=0)
    for number, (images, labels) in enumerate(islice(batches, steps)):
        loss = cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.tick(wait=number in (0, steps - 1))


def ours(trainer: Trainer, model: nn.Module, steps: int, clock: Clock) -> None:
    numbers = iter(range(steps))

    def on_step() -> None:
        clock.tick(wait=next(numbers) in (0, steps - 1))

    trainer.train(
        model,
        sgd(decayed(model, LR, WEIGHT_DECAY)),
        lambda images, labels: cross_entropy(model(images), labels),
        evaluate=lambda: Top1(0.0, 1),
        on_step=on_step,
    )


def turns(arguments: argparse.Namespace, regime: Regime) -> dict[str, Any]:
    fabric = make_fabric(arguments.device, "32-true")
    steps, batch = arguments.steps, arguments.batch
    data = load_data("digits", image_size=arguments.size, limit=steps * batch)
    first = create_model(arguments.model, 10).to(fabric.device)
    times: dict[str, list[float]] = {"bare": [], "ours": []}

    def one(name: str, folder: Path) -> None:
        model, clock = copy.deepcopy(first), Clock(fabric.device)
        if name == "bare":
            bare(model, data, batch, steps, clock)
        else:
            recipe = Recipe("turn", 1, batch, 0, "", regime)
            ours(Trainer(fabric, data, folder, Silent(), recipe, Upkeep()), model, steps, clock)
        times[name].append(clock.step_ms())

    for number in range(arguments.turns + 1):
        for name in ("bare", "ours") if number % 2 else ("ours", "bare"):
            with tempfile.TemporaryDirectory() as folder:
                one(name, Path(folder))
        if number == 0:  # the first turn warms up
            times = {"bare": [], "ours": []}
    return summary(times)


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the ratio of paired turns with its range of the middle half."""
    ratios = np.array(times["ours"]) / np.array(times["bare"])
    low, middle, high = np.percentile(ratios, (25, 50, 75)).tolist()
    return {
        "step_ms": {name: float(np.median(values)) for name, values in times.items()},
        "ratio": middle,
        "ratio_middle_half": [low, high],
        "turns": times,
        "within_limit": middle <= LIMIT,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="wgates:resnet20")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--out", default="training.json")
    arguments = parser.parse_args()
    found = {}
    for name, regime in REGIMES.items():
        found[name] = turns(arguments, regime)
        print(f"{name}: {found[name]['ratio']:.3f}x of a bare loop", flush=True)
    settings = {k: v for k, v in vars(arguments).items() if k != "out"}
    write_result(
        arguments.out,
        {"settings": settings, "limit": LIMIT, "regimes": found, "environment": environment()},
    )


if __name__ == "__main__":
    main()
