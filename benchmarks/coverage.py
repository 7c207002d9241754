"""Which networks can be pruned: every torchvision classifier and backbone, and many of timm's.

python -m benchmarks.coverage [--only NAME | --report] [--part K/N] [--work DIR]

Success is: trace, prune to random widths, forward, ONNX export, parity in ONNX Runtime, reload
from plan.json and safetensors, and a sliced skeleton that agrees. Each network in a process of
its own, one JSON line each; a run that was stopped goes on where it was. Parts run side by side on
the same DIR: `--part 1/2` and `--part 2/2` are every second network each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import environment, write_result
from benchmarks.coverage_models import image_size, make, names
from calibration.candidates import Slicer
from calibration.cost import parameter_count
from calibration.skeleton import Skeleton
from calibration.widths import Plan, WidthVector
from pipeline.errors import DeployError
from pipeline.export import export_onnx
from pipeline.models.weights import load_weights, save_weights
from pipeline.pruning.groups import trace
from pipeline.pruning.masking import masked
from pipeline.pruning.surgery import shrink
from pipeline.unfused import run_onnx

CPU_SECONDS, MEMORY_GIB = 600, 18  # some have 2.5 GiB of weights, and need several copies
TOLERANCE = 1e-4  # of the largest output


def main() -> None:
    arguments = _arguments()
    if arguments.only:
        for name in names():
            if arguments.only in (name, name.split(":")[1]):
                print(json.dumps(attempt(name, arguments.work), indent=1))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    lines = arguments.work / "lines.jsonl"
    before = _read(lines)
    for name in [] if arguments.report else arguments.part(names()):
        if name not in before:
            row = attempt(name, arguments.work)
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            told = {key: row[key] for key in ("name", "outcome", "reason", "seconds")}
            print(told, flush=True)
    done = _read(lines)
    _write([done[n] for n in names() if n in done], [n for n in names() if n not in done])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="one network, printed and not recorded")
    parser.add_argument("--report", action="store_true", help="write what a stopped run found")
    parser.add_argument("--part", type=part, default="1/1", metavar="K/N", help="every Nth, from K")
    parser.add_argument("--work", type=Path, default=Path("runs/coverage"))
    return parser.parse_args()


def part(text: str) -> Callable[[list[str]], list[str]]:
    """What K/N chooses of a list."""
    first, every = map(int, text.split("/"))
    if not 1 <= first <= every:
        raise argparse.ArgumentTypeError(f"{text}: K is from 1 to N")
    return lambda found: found[first - 1 :: every]


def _read(lines: Path) -> dict[str, dict[str, Any]]:
    if not lines.exists():
        return {}
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row for row in rows}


def _write(rows: list[dict[str, Any]], missing: list[str]) -> None:
    outcomes = Counter(row["outcome"] for row in rows)
    sources = {row["name"].split(":")[0] for row in rows}
    by_source = {
        source: Counter(r["outcome"] for r in rows if r["name"].startswith(f"{source}:"))
        for source in sorted(sources)
    }
    document = {
        "environment": environment(),
        "success": (
            "trace, prune to random widths, forward, ONNX export, ONNX Runtime parity, reload "
            "from plan.json and safetensors, sliced skeleton agrees with torch surgery"
        ),
        "limits": {"cpu_seconds": CPU_SECONDS, "memory_gib": MEMORY_GIB, "tolerance": TOLERANCE},
        "outcomes": dict(outcomes),
        "by_source": {source: dict(count) for source, count in by_source.items()},
        "not_run": missing,
        "networks": rows,
    }
    write_result("coverage.json", document)
    print(document["outcomes"], document["by_source"])


def attempt(name: str, work: Path) -> dict[str, Any]:
    """One network in a child process: what was found, the outcome, the reason, CPU seconds."""
    work.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")  # imports are shared
    log = work / (name.replace(":", "_") + ".log")
    near, far = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(name, far, log))
    child.start()
    far.close()
    row: dict[str, Any] = {"name": name, "size": image_size(name), "outcome": "failed"}
    row |= {"reason": "", "seconds": None}
    with contextlib.suppress(EOFError):  # it ended without a word
        row |= near.recv()
    child.join()
    if row["outcome"] == "failed":
        text = log.read_text(encoding="utf-8").strip().splitlines()
        row["reason"] = text[-1] if text else f"the process ended with {child.exitcode}"
    return row


def _child(name: str, pipe: Any, log: Path) -> None:
    sys.stderr = log.open("w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_GIB << 30, MEMORY_GIB << 30))
    torch.set_num_threads(1)
    began = time.process_time()
    try:
        found = check(name)
    except DeployError as refusal:
        found = {"outcome": "refused", "reason": str(refusal)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    spent = round(time.process_time() - began, 1)
    pipe.send({**found, "seconds": spent, "peak_mib": peak})


def check(name: str) -> dict[str, Any]:
    """Trace, prune, export, reload: AssertionError where two forms of the network differ."""
    model, size = make(name, seed=0), image_size(name)
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    skeleton = trace(model, images)
    groups = skeleton.groups
    found = {
        "groups": len(groups.every),
        "prunable": len(groups.prunable),
        "share": round(prunable_share(skeleton), 3),
        "frozen": dict(Counter(str(group.frozen) for group in groups.every if group.frozen)),
    }
    if not groups.prunable:
        reasons = sorted({str(group.frozen) for group in groups.every})
        reason = f"no layer can be pruned: {'; '.join(reasons)}"
        return {**found, "outcome": "refused", "reason": reason}
    plan = _random_plan(skeleton)
    small = shrink(model, skeleton, plan)
    with torch.no_grad():
        logits = small(images).numpy()
        with masked(model, groups, plan):
            gated = model(images).numpy()
    _agree("gated and sliced", gated, logits)
    exported = export_onnx(small, images)
    _agree("exported and sliced", run_onnx(exported, images.numpy()), logits)
    again, cut = _reloaded(name, skeleton, plan, small)
    with torch.no_grad():
        assert np.array_equal(again(images).numpy(), logits), "the reloaded network differs"
    _agree("sliced skeleton and surgery", run_onnx(cut, images.numpy()), logits)
    return {**found, "outcome": "ok", "reason": ""}


def prunable_share(skeleton: Skeleton) -> float:
    """The share of the parameters that goes when one channel of each group is left."""
    full = skeleton.groups.full()
    least = WidthVector(full.groups, (1,) * len(full.groups))
    return 1 - parameter_count(skeleton, least) / parameter_count(skeleton, full)


def _random_plan(skeleton: Skeleton) -> Plan:
    rng = np.random.default_rng(2)
    kept = {}
    for group in skeleton.groups.prunable:
        count = int(rng.integers(-(-group.channels // 4), group.channels + 1))
        rows = rng.choice(group.channels, count, replace=False)
        kept[group.name] = tuple(sorted(int(row) for row in rows))
    return Plan(skeleton.sha256, kept)


def _reloaded(
    name: str, skeleton: Skeleton, plan: Plan, small: nn.Module
) -> tuple[nn.Module, bytes]:
    """The network from files and other random weights, and the skeleton cut, from files too."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        skeleton.save(folder)
        (folder / "plan.json").write_text(json.dumps(plan.to_json()), encoding="utf-8")
        save_weights(small, folder / "weights.safetensors")
        read = Skeleton.open(folder)
        same = Plan.from_json(json.loads((folder / "plan.json").read_text(encoding="utf-8")))
        again = shrink(make(name, seed=3), read, same)
        load_weights(again, folder / "weights.safetensors")
    return again.eval(), Slicer(read).slice(same)


def _agree(what: str, one: np.ndarray, other: np.ndarray) -> None:
    worst = float(np.abs(one - other).max() / np.abs(other).max())
    assert np.ptp(other) > 0, "a constant output would prove nothing"
    assert worst <= TOLERANCE, f"{what} differ by {worst:.1e}"


if __name__ == "__main__":
    main()
