"""verify: parity, accuracy through the engine, latency from fresh processes, and the verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from calibration.cost import NetworkCost, parameter_count
from calibration.lpnet import LPNet
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector
from pipeline.attribution import STEPS, attribute
from pipeline.budget import Budget, Objective
from pipeline.errors import ParityError
from pipeline.files import write_atomically
from pipeline.judging import (
    FEWEST_PROCESSES,
    Judge,
    Verdict,
    distribution,
    ratio_of,
    share,
)
from pipeline.models.user_file import without_folder
from pipeline.options import (
    CalibrateOptions,
    PrepareOptions,
    PruneOptions,
    VerifyOptions,
)
from pipeline.reference import REFERENCE
from pipeline.run import Context
from pipeline.serving import TOLERANCE, target_of
from pipeline.stages.answers import Answers, answers, flips
from pipeline.stages.common import data_of, plan_of, skeleton_of
from pipeline.stages.counterfactual import counterfactual
from pipeline.stages.footprint import build_spread, footprint, reference_of
from targets.base import Precision
from targets.blocks import BlockRun, measure_blocks

BLOCKS = "blocks.json"  # every timed call
COUNTED: Mapping[Objective, str] = {"flops": "macs", "params": "params"}  # keys of a certificate


def execute(context: Context) -> None:
    options = context.options(VerifyOptions)
    sizes = _sizes(context)
    judge, bound = _judge(context.run.options("prune", PruneOptions), sizes)
    found = answers(context)
    parity = _checked_parity(found, options.engine_tolerance, target_of(context.run).precision)
    blocks = _measure(context, judge)
    certificate = {
        **_identity(context, judge, blocks),
        **bound,
        "latency_ms": _latency(context, blocks),
        "speedup": ratio_of(blocks, "dense", "engine"),
        "accuracy": _accuracy(context, found),
        "attribution": [step.to_json() for step in attribute(found.predicted, found.labels)],
        "parity": parity,
        **sizes,
        "build": _build(context),
        "footprint": footprint(context),
        "counterfactual": counterfactual(context),
        "doubts": list(judge.doubts(blocks)),
    }
    write_atomically(context.partial / REFERENCE, reference_of(context).to_bytes())
    context.write_json("flips.json", {"steps": _flips(context, found)})
    context.write_json("certificate.json", certificate)
    context.write_json(BLOCKS, blocks.to_json())
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


def _checked_parity(found: Answers, asked: float | None, precision: Precision) -> dict[str, Any]:
    """ParityError where the logits differ more than asked, or than the precision explains."""
    tolerance = TOLERANCE[precision] if asked is None else asked
    parity = found.parity()
    if not math.isfinite(parity["max_rel"]):
        raise ParityError(
            "the engine or torch gives logits that are not finite",
            fix="build for a higher precision, or look where the network overflows",
        )
    if parity["max_rel"] > tolerance:
        raise ParityError(
            f"engine and torch differ by {parity['max_rel']:.1e} of the largest logit",
            fix=f"allow it with --engine-tolerance, now {tolerance:g}",
        )
    return {**parity, "tolerance": tolerance}


def _accuracy(context: Context, found: Answers) -> dict[str, dict[str, Any]]:
    """Top-1 at every step of the line, on the same test images, with Wilson intervals."""
    known = {step: share(found.top1(step), len(found.labels)) for step in found.predicted}
    pruned = context.run.document("finetune", "finetune.json")["top1"]["pruned"]
    known.setdefault("pruned", share(pruned["top1"], pruned["n"]))
    return {step: known[step] for step in STEPS}


def _flips(context: Context, found: Answers) -> list[dict[str, Any]]:
    known = [step for step in STEPS if step in found.predicted]
    return [flips(context, found, before, after) for before, after in pairwise(known)]


# --- latency ------------------------------------------------------------------------------------


def _measure(context: Context, judge: Judge) -> BlockRun:
    """Fresh processes, engine and dense interleaved, until the verdict is clear or the cap.

    What was measured of this engine before, without a verdict, counts too: who measured anew until
    there is one would take the luckiest.
    """
    options, run, target = context.options(VerifyOptions), context.run, target_of(context.run)
    build, before = run.document("build", "build.json"), _measured_before(context)

    def stop(latest: BlockRun) -> bool:
        context.reporter.progress("fresh processes", latest.processes, options.processes)
        blocks = _together(before, latest)
        enough = blocks.processes >= 2 * FEWEST_PROCESSES
        return enough and judge.is_clear_early(blocks)

    latest = measure_blocks(
        target.name,
        target.options,
        {"engine": run.read("build", build["engine"]), "dense": run.read("build", build["dense"])},
        processes=options.processes,
        seconds_per_block=options.block_seconds,
        stop=stop,
    )
    return _together(before, latest)


def _measured_before(context: Context) -> BlockRun | None:
    path = context.earlier(BLOCKS)
    return None if path is None else BlockRun.from_json(json.loads(path.read_bytes()))


def _together(before: BlockRun | None, latest: BlockRun) -> BlockRun:
    """Both, unless the machine or its settings changed in between."""
    if before is None or before.fingerprint.differences(latest.fingerprint):
        return latest
    return before.joined(latest)


def _latency(context: Context, blocks: BlockRun) -> dict[str, Any]:
    lpnet = LPNet.open(context.run.folder / "prune", skeleton_of(context.run))
    assert lpnet.held_out is not None
    # what was learned is a ratio to the dense network, which may run faster or slower now
    pace = blocks.median_ms("dense") / float(lpnet.get_buffer("anchor_ms"))
    predicted = pace * context.run.document("prune", "prune.json")["predicted_ms"]
    half = lpnet.held_out.interval_95
    return {
        "engine": distribution(blocks, "engine"),
        "dense": distribution(blocks, "dense"),
        "predicted": {
            "p50": predicted,
            "p90": None,  # the LPNet predicts medians only
            "p99": None,
            "ci95": [predicted * math.exp(-half), predicted * math.exp(half)],
            "samples": lpnet.held_out.records,
        },
    }


def _identity(context: Context, judge: Judge, blocks: BlockRun) -> dict[str, Any]:
    run = context.run
    prepare, prune = run.options("prepare", PrepareOptions), run.options("prune", PruneOptions)
    card = data_of(context).card
    return {
        "schema": 1,
        "model": without_folder(prepare.model),
        "data": card.name,
        "data_sha256": card.digest,
        "target": target_of(run).name,
        "fingerprint": blocks.fingerprint.to_json(),
        "budget": str(judge.budget),
        "budget_ms": None if judge.counted else judge.budget.in_ms(judge.dense_ms(blocks)),
        "percentile": prune.percentile,
        "verdict": judge.verdict(blocks),
    }


def _build(context: Context) -> dict[str, Any]:
    """How the engine was built: what recertify needs to build it alike, and the builds' spread."""
    build = context.run.document("build", "build.json")
    return {
        "kept_fp32": build["precision"]["engine"]["kept_fp32"],
        "range_images": context.run.options("calibrate", CalibrateOptions).range_images,
        "identical": build["identical"],
        "builds": build_spread(context, build),
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
