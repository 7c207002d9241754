"""verify: parity, accuracy through the engine, latency from fresh processes, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.cost import NetworkCost, parameter_count
from calibration.lpnet import LPNet
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector
from pipeline.budget import Budget, Objective
from pipeline.errors import ParityError
from pipeline.export import run_onnx
from pipeline.options import PrepareOptions, PruneOptions, TraceOptions, VerifyOptions
from pipeline.run import Context
from pipeline.serving import TOLERANCE, target_of
from pipeline.stages.common import compact_model, data_of, plan_of, skeleton_of
from targets.base import Precision
from targets.blocks import BlockRun, measure_blocks
from targets.statistics import bootstrap_ci95

Verdict = Literal["met", "missed", "inconclusive"]
FEWEST_PROCESSES = 5  # fewer blocks make no interval
PERCENTILES = (50, 90, 99)
TEST_BATCH = 256
COUNTED: Mapping[Objective, str] = {"flops": "macs", "params": "params"}  # keys of a certificate


@dataclass(frozen=True)
class Judge:
    """Compares measured blocks with the budget; asked after every process."""

    budget: Budget
    percentile: int
    counted: Verdict | None = None  # of a budget that is a count: exact, whatever the clock says

    def engine_ms(self, blocks: BlockRun) -> tuple[float, tuple[float, float]]:
        """The budgeted percentile of the engine over its blocks, with its 95 % interval."""
        per_block = [
            float(np.percentile(samples.clean_ms, self.percentile))
            for samples in blocks.blocks["engine"]
        ]
        return float(np.median(per_block)), bootstrap_ci95(per_block)

    def verdict(self, blocks: BlockRun) -> Verdict:
        """A relative budget is judged by the paired ratio: drift of the machine cancels."""
        if self.counted is not None:
            return self.counted
        if blocks.processes < FEWEST_PROCESSES:
            return "inconclusive"
        if self.budget.unit == "x":
            _, (low, high) = self.ratio(blocks)
        else:
            _, (low, high) = self.engine_ms(blocks)
        if high <= self.budget.value:
            return "met"
        return "missed" if low > self.budget.value else "inconclusive"

    def ratio(self, blocks: BlockRun) -> tuple[float, tuple[float, float]]:
        """Engine over dense at the budgeted percentile, paired by process."""
        pairs = zip(blocks.blocks["engine"], blocks.blocks["dense"], strict=True)
        ratios = [
            float(
                np.percentile(ours.clean_ms, self.percentile)
                / np.percentile(dense.clean_ms, self.percentile)
            )
            for ours, dense in pairs
        ]
        return float(np.median(ratios)), bootstrap_ci95(ratios)


def execute(context: Context) -> None:
    options = context.options(VerifyOptions)
    sizes = _sizes(context)
    judge, bound = _judge(context.run.options("prune", PruneOptions), sizes)
    logits = _logits(context)
    parity = _parity(logits)
    _check_parity(parity, options.engine_tolerance, target_of(context.run).precision)
    blocks = _measure(context, judge)
    certificate = {
        **_identity(context, judge, blocks),
        **bound,
        "latency_ms": _latency(context, judge, blocks),
        "speedup": _speedup(blocks),
        "accuracy": _accuracy(context, logits),
        "parity": parity,
        **sizes,
        "doubts": list(blocks.doubts()),
    }
    context.write_json("certificate.json", certificate)
    context.write_json("blocks.json", blocks.to_json())
    context.write_json(
        "latency.json",
        {name: blocks.pooled_ms(name).round(6).tolist() for name in ("engine", "dense")},
    )


def _judge(
    options: PruneOptions, sizes: Mapping[str, Mapping[str, int]]
) -> tuple[Judge, dict[str, Any]]:
    """Who decides, and the budget as the certificate states it; a count is compared at once."""
    budget, percentile = Budget.parse(options.budget), int(options.percentile.removeprefix("p"))
    if options.objective == "latency":
        return Judge(budget, percentile), {"objective": "latency", "budget_count": None}
    found = sizes[COUNTED[options.objective]]
    most = budget.as_count(found["dense"])
    verdict: Verdict = "met" if found["pruned"] <= most else "missed"
    stated = {"objective": options.objective, "budget_count": most}
    return Judge(budget, percentile, verdict), stated


# --- numerics and accuracy --------------------------------------------------------------------


def _logits(context: Context) -> dict[str, NDArray[np.float32]]:
    """Logits of torch, ONNX and the shipped engine file on every test image, and the labels."""
    data, run, model = data_of(context), context.run, compact_model(context)
    onnx = run.read("export", "model.onnx").read_bytes()
    batch = run.options("trace", TraceOptions).batch
    found: dict[str, list[NDArray[np.float32]]] = {"torch": [], "onnx": [], "engine": []}
    engine_file = run.read("build", run.document("build", "build.json")["engine"])
    step = max(batch, TEST_BATCH // batch * batch)
    with target_of(run).load(engine_file) as engine, torch.no_grad():
        for done, (images, _) in enumerate(data.batches("test", step), 1):
            found["torch"].append(model(images).numpy())
            found["onnx"].append(_padded_onnx(onnx, images, batch))
            found["engine"].append(engine.infer(images.numpy()))
            total = -(-data.size("test") // step)
            context.reporter.progress("accuracy through the engine", done, total)
    labels = data.labels("test").numpy()
    return {name: np.concatenate(rows) for name, rows in found.items()} | {"labels": labels}


def _padded_onnx(model: bytes, images: torch.Tensor, batch: int) -> NDArray[np.float32]:
    """Run a static graph on any number of images: the last batch is filled up with zeros."""
    missing = -len(images) % batch
    padding = images.new_zeros(missing, *images.shape[1:])
    return run_onnx(model, torch.cat([images, padding]))[: len(images)]


def _parity(logits: Mapping[str, NDArray[np.float32]]) -> dict[str, float | int]:
    """The engine against torch: largest differences, and labels that flipped."""
    expected, got = logits["torch"], logits["engine"]
    worst = float(np.abs(expected - got).max())
    return {
        "max_abs": worst,
        "max_rel": worst / float(np.abs(expected).max()),
        "label_flips": int((expected.argmax(1) != got.argmax(1)).sum()),
        "n": len(expected),
    }


def _accuracy(
    context: Context, logits: Mapping[str, NDArray[np.float32]]
) -> dict[str, dict[str, Any]]:
    """Top-1 at every step of the line, on the same test images, with Wilson intervals."""
    run = context.run
    finetune = run.document("finetune", "finetune.json")["top1"]
    shares = {
        "dense": run.document("prepare", "prepare.json")["top1"]["test"],
        "pruned": finetune["pruned"],
        "finetuned": finetune["finetuned"],
    }
    for name in ("onnx", "engine"):
        right = logits[name].argmax(1) == logits["labels"]
        shares[name] = {"top1": float(right.mean()), "n": len(right)}
    return {
        name: {**share, "ci95": list(wilson_ci95(share["top1"], share["n"]))}
        for name, share in shares.items()
    }


def wilson_ci95(share: float, n: int) -> tuple[float, float]:
    """Wilson score interval of a share of n trials, 95 %."""
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _check_parity(
    parity: Mapping[str, float | int], asked: float | None, precision: Precision
) -> None:
    """ParityError where the logits differ more than asked, or than the precision explains."""
    tolerance = TOLERANCE[precision] if asked is None else asked
    if parity["max_rel"] > tolerance:
        raise ParityError(
            f"engine and torch differ by {parity['max_rel']:.1e} of the largest logit",
            fix=f"allow it with --engine-tolerance, now {tolerance:g}",
        )


# --- latency ------------------------------------------------------------------------------------


def _measure(context: Context, judge: Judge) -> BlockRun:
    """Fresh processes, engine and dense interleaved, until the verdict is clear or the cap."""
    options, run, target = context.options(VerifyOptions), context.run, target_of(context.run)
    build = run.document("build", "build.json")

    def stop(blocks: BlockRun) -> bool:
        context.reporter.progress("fresh processes", blocks.processes, options.processes)
        enough = blocks.processes >= 2 * FEWEST_PROCESSES
        return enough and judge.verdict(blocks) != "inconclusive"

    return measure_blocks(
        target.name,
        target.options,
        {"engine": run.read("build", build["engine"]), "dense": run.read("build", build["dense"])},
        processes=options.processes,
        seconds_per_block=options.block_seconds,
        stop=stop,
    )


def _latency(context: Context, judge: Judge, blocks: BlockRun) -> dict[str, Any]:
    lpnet = LPNet.open(context.run.folder / "prune", skeleton_of(context.run))
    assert lpnet.held_out is not None
    predicted = context.run.document("prune", "prune.json")["predicted_ms"]
    half = lpnet.held_out.interval_95
    return {
        "engine": _distribution(blocks, "engine"),
        "dense": _distribution(blocks, "dense"),
        "predicted": {
            "p50": predicted,
            "p90": None,  # the LPNet predicts medians only
            "p99": None,
            "ci95": [predicted * math.exp(-half), predicted * math.exp(half)],
            "samples": lpnet.held_out.records,
        },
    }


def _distribution(blocks: BlockRun, name: str) -> dict[str, Any]:
    samples = len(blocks.pooled_ms(name))
    tail = {f"p{p}": blocks.percentile_ms(name, p) for p in PERCENTILES if p < 99 or samples >= 299}
    return {
        "p99": None,
        **tail,
        "p50": blocks.median_ms(name),
        "ci95": list(blocks.ci95_ms(name)),
        "samples": samples,
    }


def _speedup(blocks: BlockRun) -> dict[str, Any]:
    median, interval = blocks.ratio("dense", "engine")
    return {"median": median, "ci95": list(interval)}


def _identity(context: Context, judge: Judge, blocks: BlockRun) -> dict[str, Any]:
    run = context.run
    prepare, prune = run.options("prepare", PrepareOptions), run.options("prune", PruneOptions)
    dense_ms = blocks.median_ms("dense")
    if prune.percentile != "p50":
        dense_ms = blocks.percentile_ms("dense", judge.percentile)
    return {
        "schema": 1,
        "model": prepare.model,
        "data": data_of(context).card.name,
        "target": target_of(run).name,
        "fingerprint": blocks.fingerprint.to_json(),
        "budget": str(judge.budget),
        "budget_ms": None if judge.counted else judge.budget.in_ms(dense_ms),
        "percentile": prune.percentile,
        "verdict": judge.verdict(blocks),
    }


def _sizes(context: Context) -> dict[str, dict[str, int]]:
    run = context.run
    skeleton: Skeleton = skeleton_of(run)
    widths: WidthVector = plan_of(run).widths()
    cost, full = NetworkCost.of(skeleton), skeleton.groups.full()
    build = run.document("build", "build.json")
    return {
        "params": {
            "dense": parameter_count(skeleton, full),
            "pruned": parameter_count(skeleton, widths),
        },
        "macs": {"dense": cost.macs(full), "pruned": cost.macs(widths)},
        "engine_bytes": {"dense": build["dense_bytes"], "pruned": build["engine_bytes"]},
    }
