"""What a gated training step costs beside a dense one: time in turns, and memory.

    python -m benchmarks.gated_step [--device cuda] [--steps 10] [--out gated-step.json]

Both steps see the same images, channels last: forward, cross entropy, backward, SGD. The gated
one adds the gates and, under a price, the LPNet's prediction and its gradient. The steps are the
first of a long training, in which plans are chosen a fixed number of times, however long it is:
what choosing one takes is given beside. The LPNet is fitted on made-up latencies: its cost does
not depend on them. Turns of a few steps alternate, in reversed order every second time; the ratio
is that of paired turns. Memory is what backward keeps (on CUDA: the peak) beside parameters,
gradients and the optimiser's state.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice, product
from types import SimpleNamespace
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common import environment, write_result
from calibration.cost import NetworkCost
from calibration.database import LatencyRecord
from calibration.lpnet import fit_once
from calibration.sampling import width_sequence
from calibration.skeleton import Skeleton
from pipeline.models.zoo import create_model
from pipeline.pruning.constraint import Goal
from pipeline.pruning.groups import trace
from pipeline.pruning.select import Selector, priced
from pipeline.pruning.wgates import BudgetMode, GateSettings, WGates
from pipeline.training import Trainer, decayed, sgd
from targets import load_target
from targets.base import TargetOptions

CLASSES, WARM_UP, MULTIPLE = 10, 3, 8
LONG = 10_000  # steps of the training whose first ones are timed
MODES: tuple[BudgetMode, ...] = ("projection", "bound")
LIMIT = 1.15  # the goal, for time and memory
SETTINGS = GateSettings(gate_lr=1.0, weight_lr=0.02, weight_decay=5e-4, dual_lr=0.8)
Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    model: str
    size: int  # pixels
    batch: int

    @property
    def name(self) -> str:
        return f"{self.model} at {self.size}, batch {self.batch}"


CASES = (Case("wgates:resnet20", 32, 64), Case("torchvision:resnet18", 64, 64))


def made_up_goal(skeleton: Skeleton, device: torch.device) -> Goal:
    """60 % of an LPNet's latency, with steps for plans and smooth for a slope, as in training."""
    cost, full = NetworkCost.of(skeleton), skeleton.groups.full()
    dense = cost.macs(full)
    wanted = [full, *islice(width_sequence(skeleton.groups, MULTIPLE, seed=0), 100)]
    ratios = [0.2 + 0.8 * cost.macs(widths) / dense for widths in wanted]
    records = [
        LatencyRecord(widths, ratio, (0.99 * ratio, 1.01 * ratio), 10.0, 10.0 * ratio, ())
        for widths, ratio in zip(wanted, ratios, strict=True)
    ]
    target = load_target("ort-cpu", TargetOptions(threads=1))
    fingerprint = target.fingerprint()
    lpnet = fit_once(records, skeleton, fingerprint, block=target.channel_block)
    selector = Selector(skeleton, priced(lpnet.predict_ms), MULTIPLE)
    aim = 0.6 * lpnet.predict_one_ms(full)
    smooth = fit_once(records, skeleton, fingerprint, block=1).to(device)
    return Goal(lambda: smooth.predict_ms, selector, aim)


class Turns:
    """Stands in for the trainer of `WGates.solve`: times gated and dense steps in turns."""

    def __init__(self, case: Case, dense: nn.Module, device: str, turns: int, steps: int) -> None:
        self.recipe, self.steps_per_epoch = SimpleNamespace(epochs=1), LONG
        self.fabric = SimpleNamespace(device=torch.device(device), world_size=1)
        self.state: dict[str, float] = {}
        self.turns, self.steps, self.dense = turns, steps, dense.to(device).train()
        rng = torch.Generator().manual_seed(0)
        shape = (case.batch, 3, case.size, case.size)
        images = torch.randn(shape, generator=rng)
        self.images = images.to(device, memory_format=torch.channels_last)
        self.labels = torch.randint(CLASSES, (case.batch,), generator=rng).to(device)
        self.seconds: dict[str, list[float]] = {"dense": [], "gated": []}
        self.held_bytes: dict[str, int] = {}

    def train(
        self,
        trained: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        evaluate: Callable[[], Any],
        on_step: Step,
    ) -> None:
        trained.train()
        plain = sgd(decayed(self.dense, SETTINGS.weight_lr, SETTINGS.weight_decay))
        loss_of: dict[str, Callable[[], Tensor]] = {
            "dense": lambda: cross_entropy(self.dense(self.images), self.labels),
            "gated": lambda: loss(self.images, self.labels),
        }
        optimizers = {"dense": plain, "gated": optimizer}
        for name in loss_of:
            self.held_bytes[name] = self._memory(loss_of[name], optimizers[name])
        for turn in range(self.turns):
            for name in sorted(loss_of, reverse=bool(turn % 2)):
                after = on_step if name == "gated" else lambda: None
                self.seconds[name].append(self._turn(loss_of[name], optimizers[name], after))

    def _turn(
        self, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, after: Step
    ) -> float:
        """Median seconds of a step."""
        found = []
        for _ in range(self.steps):
            self._wait()
            started = time.perf_counter()
            _step(loss, optimizer)
            after()
            self._wait()
            found.append(time.perf_counter() - started)
        return float(np.median(found))

    def _memory(self, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> int:
        """Bytes that a step holds at its fullest; also warms up."""
        for _ in range(WARM_UP):
            _step(loss, optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state = [t for slots in optimizer.state.values() for t in slots.values()]
        kept = [*parameters, *parameters, *(t for t in state if isinstance(t, Tensor))]
        if self.images.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            _step(loss, optimizer)
            return int(torch.cuda.max_memory_allocated() - before + _bytes(kept))
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            value = loss()
        del value
        for parameter in parameters:  # counted below, whether or not backward keeps them
            storages.pop(parameter.untyped_storage().data_ptr(), None)
        return sum(storages.values()) + _bytes(kept)

    def _wait(self) -> None:
        if self.images.device.type == "cuda":
            torch.cuda.synchronize()


def _step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
    value = loss()
    optimizer.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def run(case: Case, mode: BudgetMode, device: str, turns: int, steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = create_model(case.model, CLASSES)
    skeleton = trace(model.eval(), torch.randn(1, 3, case.size, case.size))
    model.to(memory_format=torch.channels_last)
    course = Turns(case, copy.deepcopy(model), device, turns, steps)
    goal = made_up_goal(skeleton, course.fabric.device)
    wgates = WGates(model, skeleton, replace(SETTINGS, mode=mode), multiple=MULTIPLE)
    wgates.solve(cast("Trainer", course), goal)
    started = time.perf_counter()
    wgates.propose(goal.selector, goal.aim)
    choosing_s = time.perf_counter() - started
    seconds = {name: np.array(found) for name, found in course.seconds.items()}
    ratios = seconds["gated"] / seconds["dense"]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {
        "case": case.name,
        "mode": mode,
        "groups": len(skeleton.groups.prunable),
        "seconds": {name: found.tolist() for name, found in seconds.items()},
        "time_ratio": {"median": middle, "quartiles": [low, high]},
        "held_bytes": course.held_bytes,
        "choosing_s": choosing_s,
        "memory_ratio": course.held_bytes["gated"] / course.held_bytes["dense"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", choices=get_args(BudgetMode), action="append")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5, help="steps of one turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="a part of the case's name")
    parser.add_argument("--out", help="name of a result file in benchmarks/results")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = []
    chosen = [case for case in CASES if not given.only or given.only in case.name]
    for case, mode in product(chosen, given.mode or MODES):
        found.append(run(case, mode, given.device, given.turns, given.steps))
        time_ratio, memory = found[-1]["time_ratio"], found[-1]["memory_ratio"]
        low, high = time_ratio["quartiles"]
        print(
            f"{case.name}, {mode}: time {time_ratio['median']:.3f} ({low:.3f} to {high:.3f}), "
            f"memory {memory:.3f}; goal {LIMIT}; choosing a plan {found[-1]['choosing_s']:.2f} s",
            flush=True,
        )
    if given.out:
        device = given.device if given.device == "cpu" else torch.cuda.get_device_name()
        write_result(
            given.out,
            {
                "environment": environment(threads=given.threads),
                "device": device,
                "goal": LIMIT,
                "cases": found,
            },
        )


if __name__ == "__main__":
    main()
