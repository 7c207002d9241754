"""ResNet-50, dense and pruned, in every runtime for NVIDIA's GPUs, beside PyTorch itself.

python -m benchmarks.gpu  (about 15 minutes; without a GPU it says why nothing is measured)

All contenders of one network and batch are loaded together and timed in turn, forwards and
backwards, so that a drift of the clock strikes them all. Every call is timed end-to-end and, where
events can be put around the network, on the device as well.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import environment, write_result
from benchmarks.gpu_torch import TorchEngine
from calibration.candidates import Slicer
from calibration.sampling import width_sequence
from pipeline.models.zoo import create_model
from pipeline.pruning.groups import trace
from pipeline.pruning.surgery import shrink
from targets import load_target
from targets.base import Engine, Images, TargetOptions
from targets.errors import DeployError
from targets.gpu.cuda import device
from targets.gpu.nvml import GpuMonitor, throttle_words
from targets.precision.reference import relative_error
from targets.samples import Samples
from targets.timing import warm_up
from targets.trt.engine import RunSettings, TensorRtEngine
from targets.trt.plan_file import bare

TARGETS = (
    *("trt-fp32", "trt-fp16", "trt-int8"),
    *("trt-rtx-fp32", "trt-rtx-fp16", "trt-rtx-int8"),
    *("ort-cuda", "ort-cuda-fp16"),
)
CALIBRATION_IMAGES = 64
PRUNED = 2  # random widths beside the dense network
SEED = 0


@dataclass(frozen=True)
class Network:
    """One network at one batch, as ONNX and as a module."""

    name: str
    onnx: bytes
    module: torch.nn.Module
    batch: int


@dataclass(frozen=True)
class Contender:
    """An engine, and what it was made of."""

    name: str
    cuda_graph: bool
    engine: Engine
    facts: dict[str, Any]


def main() -> None:
    arguments = parsed_arguments()
    missing = {
        name: load_target(name, TargetOptions()).is_available() for name in arguments.targets
    }
    for name, reasons in missing.items():
        if reasons:
            print(f"not measured: {name}: {'; '.join(reasons)}")
    runnable = [name for name, reasons in missing.items() if not reasons]
    plan_of_sm80 = sm80_plan_here() if torch.cuda.is_available() else None
    if not runnable and plan_of_sm80 is None:
        print("not measured: there is no GPU that any of these targets can use; nothing is written")
        return
    rows = [row for network in networks(arguments) for row in study(network, runnable, arguments)]
    document = {
        "environment": environment(runnable[0]) if runnable else None,
        "gpu": gpu_state() if torch.cuda.is_available() else None,
        "not_available": {name: reasons for name, reasons in missing.items() if reasons},
        "sm80_plan_of_tensorrt_rtx": plan_of_sm80,
        "rows": rows,
    }
    write_result(arguments.out, document)


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=10, help="of each contender in a round")
    parser.add_argument("--out", default="gpu.json", help="file in benchmarks/results")
    return parser.parse_args()


def networks(arguments: argparse.Namespace) -> Iterator[Network]:
    """The dense network and random widths of it, at each batch."""
    torch.manual_seed(SEED)
    model = create_model(arguments.model, classes=1000).eval()
    settle(model, arguments.pixels)
    for batch in arguments.batches:
        skeleton = trace(model, torch.zeros(batch, 3, arguments.pixels, arguments.pixels))
        groups, slicer = skeleton.groups, Slicer(skeleton)
        drawn = islice(width_sequence(groups, 32, seed=SEED), 2, 2 + PRUNED)
        named = {"dense": groups.full()} | {f"pruned {n}": w for n, w in enumerate(drawn, 1)}
        for name, widths in named.items():
            plan = groups.first_channels(widths, skeleton.sha256)
            yield Network(name, slicer.slice(plan), shrink(model, skeleton, plan).eval(), batch)


def settle(model: torch.nn.Module, pixels: int) -> None:
    """Give batch norm real statistics: with random weights alone, activations vanish."""
    model.train()
    with torch.no_grad():
        for seed in range(4):
            model(torch.from_numpy(images(8, pixels, seed)))
    model.eval()


def images(n: int, pixels: int, seed: int) -> Images:
    """(n, 3, pixels, pixels) random images."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, 3, pixels, pixels), dtype=np.float32)


def study(
    network: Network, names: list[str], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A row for each contender and each refusal."""
    print(f"{network.name}, batch {network.batch}", flush=True)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        contenders: list[Contender] = []
        for name, cuda_graph in ((name, graph) for name in names for graph in (False, True)):
            try:
                contender = build(network, name, cuda_graph, Path(folder), arguments.pixels)
            except DeployError as error:
                yield {**described(network, name, cuda_graph), "refused": str(error)}
                continue
            if contender is not None:
                stack.enter_context(contender.engine)
                contenders.append(contender)
        for contender in torch_contenders(network, arguments.pixels):
            stack.enter_context(contender.engine)
            contenders.append(contender)
        yield from measured(network, contenders, arguments)


def build(
    network: Network, name: str, cuda_graph: bool, folder: Path, pixels: int
) -> Contender | None:
    """The engine of one target; None where it has no CUDA graphs to switch on."""
    plain = load_target(name, TargetOptions())
    if cuda_graph and "cuda_graph" not in plain.takes:
        return None
    target = load_target(name, TargetOptions(batch=network.batch, cuda_graph=cuda_graph))
    out = folder / f"{name}-{cuda_graph}{target.engine_suffix}"
    record = target.build(network.onnx, out, [images(CALIBRATION_IMAGES, pixels, 100)])
    facts = {**record.facts, "kept_fp32": list(record.kept_fp32)}
    return Contender(name, cuda_graph, target.load(out), facts)


def torch_contenders(network: Network, pixels: int) -> Iterator[Contender]:
    """What a user would otherwise pick, where PyTorch sees the GPU."""
    if not torch.cuda.is_available():
        return
    shape = (network.batch, 3, pixels, pixels)
    monitored = device().pci_bus_id
    for dtype in (torch.float32, torch.float16):
        module = copy.deepcopy(network.module).to("cuda", dtype)
        for name, runnable in (("torch eager", module), ("torch compile", torch.compile(module))):
            engine = TorchEngine(runnable, shape, dtype, GpuMonitor.open(monitored))
            facts = {"type": str(dtype), "tf32": "where PyTorch allows it by default"}
            yield Contender(f"{name} {dtype}", False, engine, facts)


def measured(
    network: Network, contenders: list[Contender], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    parts: list[list[Samples]] = [[] for _ in contenders]
    for contender in contenders:
        warm_up(contender.engine)
    for turn in range(arguments.rounds):
        order = range(len(contenders))
        for index in order if turn % 2 == 0 else reversed(order):
            engine = contenders[index].engine
            engine.time_ms(2)  # the caches hold another network's weights
            parts[index].append(engine.time_ms(arguments.calls))
    judged = images(2 * network.batch, arguments.pixels, 200)
    with torch.no_grad():
        expected = network.module(torch.from_numpy(judged)).numpy()
    for contender, samples in zip(contenders, map(Samples.concatenate, parts), strict=True):
        row = {
            **described(network, contender.name, contender.cuda_graph),
            **summary(samples),
            "logits_error": relative_error(contender.engine.infer(judged), expected),
            "facts": contender.facts,
        }
        print({key: row[key] for key in ("target", "cuda_graph", "end_to_end_ms", "device_ms")})
        yield row


def described(network: Network, name: str, cuda_graph: bool) -> dict[str, Any]:
    return {
        "network": network.name,
        "batch": network.batch,
        "target": name,
        "cuda_graph": cuda_graph,
    }


def summary(samples: Samples) -> dict[str, Any]:
    """Medians in ms, and the GPU's state over all calls."""
    masks = samples.gpu_throttle
    clocks = samples.gpu_mhz
    return {
        "calls": len(samples),
        "end_to_end_ms": quartiles(samples.wall_ns),
        "device_ms": None if samples.device_ns is None else quartiles(samples.device_ns),
        "mhz": None if clocks is None else [int(clocks.min()), int(clocks.max())],
        "throttle": [] if masks is None else throttle_words(int(np.bitwise_or.reduce(masks))),
        "doubts": samples.doubts(),
    }


def quartiles(times_ns: np.ndarray) -> list[float]:
    """25 %, 50 % and 75 % quantile in ms."""
    return [round(float(value), 5) for value in np.quantile(times_ns / 1e6, (0.25, 0.5, 0.75))]


def gpu_state() -> dict[str, Any]:
    found = device()
    monitor = GpuMonitor.open(found.pci_bus_id)
    state = {
        "name": found.name,
        "compute_capability": found.compute_capability,
        "memory_mb": found.memory_mb,
        "driver": monitor.driver(),
        "clocks": monitor.clocks(),
    }
    monitor.close()
    return state


def sm80_plan_here() -> dict[str, str]:
    """What TensorRT-RTX says to a plan for SM80 on this GPU, listed by it or not."""
    options = TargetOptions(compute_capabilities=("sm80",))
    target = load_target("trt-rtx-fp32", options)
    if reasons := target.is_buildable():
        return {"outcome": "not built", "words": "; ".join(reasons)}
    with tempfile.TemporaryDirectory() as folder:
        plan = bare(target.build(small_network(), Path(folder) / "a.plan").engine)
    try:
        monitor = GpuMonitor.open(device().pci_bus_id)
        # loaded past the target, which would refuse a GPU that is not listed
        module = importlib.import_module(target.module)
        with TensorRtEngine(module, plan, RunSettings(1), monitor) as engine:
            engine.infer(images(1, 32, 0))
    except (DeployError, ImportError) as error:
        return {"outcome": "refused", "words": str(error)}
    return {"outcome": "ran", "words": ""}


def small_network() -> bytes:
    model = create_model("wgates:resnet20", classes=10).eval()
    skeleton = trace(model, torch.zeros(1, 3, 32, 32))
    return Slicer(skeleton).at_widths(skeleton.groups.full())


if __name__ == "__main__":
    main()
