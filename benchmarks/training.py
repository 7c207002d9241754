"""The training loop beside a bare PyTorch loop, and channels last beside channels first.

    python -m benchmarks.training [--model wgates:resnet20] [--device cuda] [--turns 8] [--steps 20]

Both train the same network, in the same layout, on the same augmented images with the same
optimiser. The bare loop does nothing but forward, cross entropy, backward and step. Turns
alternate, in reversed order every second time, and the ratio is that of paired turns. A turn is
timed from its first step to its last; what stands around an epoch (evaluation, one checkpoint) is
not part of it. Layouts are compared by two bare loops, on several networks.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from functools import partial
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
    "defaults": Regime(channels_last=True),
    "average and smoothing": Regime(channels_last=True, ema=0.999, label_smoothing=0.1),
    "channels first": Regime(),
}
LAYOUTS = (  # network, pixels
    ("wgates:resnet20", 32),
    ("wgates:vgg16_bn", 32),
    ("torchvision:resnet18", 64),
    ("torchvision:resnet50", 64),
    ("torchvision:mobilenet_v2", 96),
    ("torchvision:efficientnet_b0", 96),
)


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


def bare(
    model: nn.Module, data: ImageData, batch: int, steps: int, clock: Clock, *, last: bool
) -> None:
    device = next(model.parameters()).device
    layout = torch.channels_last if last else torch.contiguous_format
    optimizer = sgd(decayed(model.to(memory_format=layout), LR, WEIGHT_DECAY))
    model.train()
    batches = data.on(device).train_batches(batch, seed=0, epoch=0)
    for number, (images, labels) in enumerate(islice(batches, steps)):
        images = images.to(device, memory_format=layout)
        loss = cross_entropy(model(images), labels.to(device))
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


def loops(arguments: argparse.Namespace, regime: Regime) -> dict[str, Any]:
    """Our loop over a bare one."""
    fabric = make_fabric(arguments.device, "32-true")
    steps, batch = arguments.steps, arguments.batch
    data = load_data("digits", image_size=arguments.size, limit=steps * batch)
    first = create_model(arguments.model, 10).to(fabric.device)

    def without() -> float:
        model, clock = copy.deepcopy(first), Clock(fabric.device)
        bare(model, data, batch, steps, clock, last=regime.channels_last)
        return clock.step_ms()

    def with_ours() -> float:
        model, clock = copy.deepcopy(first), Clock(fabric.device)
        recipe = Recipe("turn", 1, batch, 0, "", regime)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(fabric, data, Path(folder), Silent(), recipe, Upkeep())
            ours(trainer, model, steps, clock)
        return clock.step_ms()

    found = summary(turns({"bare": without, "ours": with_ours}, arguments.turns))
    return found | {"within_limit": found["ratio"] <= LIMIT}


def layouts(arguments: argparse.Namespace, network: str, size: int) -> dict[str, Any]:
    """A bare loop channels last over one channels first."""
    device, steps, batch = torch.device(arguments.device), arguments.steps, arguments.batch
    data = load_data("digits", image_size=size, limit=steps * batch)
    first = create_model(network, 10).to(device)

    def lying(last: bool) -> float:
        clock = Clock(device)
        bare(copy.deepcopy(first), data, batch, steps, clock, last=last)
        return clock.step_ms()

    contenders = {"first": partial(lying, False), "last": partial(lying, True)}
    return {"network": network, "size": size} | summary(turns(contenders, arguments.turns))


def turns(contenders: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """What each gives, called in turns; the first ones warm up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(count + 1):
        for name in sorted(contenders, reverse=bool(number % 2)):
            time_ms = contenders[name]()
            if number:
                times[name].append(time_ms)
    return times


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the ratio of paired turns, second to first, with its middle half."""
    one, other = (np.array(values) for values in times.values())
    low, middle, high = np.percentile(other / one, (25, 50, 75)).tolist()
    return {
        "step_ms": {name: float(np.median(values)) for name, values in times.items()},
        "ratio": middle,
        "ratio_middle_half": [low, high],
        "turns": times,
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
    found, lying = {}, []
    for name, regime in REGIMES.items():
        found[name] = loops(arguments, regime)
        print(f"{name}: {found[name]['ratio']:.3f}x of a bare loop", flush=True)
    for network, size in LAYOUTS:
        lying.append(layouts(arguments, network, size))
        print(f"{network}: channels last {lying[-1]['ratio']:.3f}x of channels first", flush=True)
    settings = {k: v for k, v in vars(arguments).items() if k != "out"}
    ratios = {"limit": LIMIT, "regimes": found, "layouts": lying}
    write_result(arguments.out, {"settings": settings, **ratios, "environment": environment()})


if __name__ == "__main__":
    main()
