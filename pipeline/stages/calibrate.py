"""calibrate: ground-truth latencies of sampled widths on the real runtime, and the LPNet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibration.active import START, START_WITH_PRIOR, SamplingPlan
from calibration.candidates import Slicer
from calibration.cliffs import probes, step_maps
from calibration.curve import error_curve
from calibration.database import LatencyRecord
from calibration.feasibility import Feasibility
from calibration.lpnet import LPNet
from calibration.measure import Bench
from calibration.pace import calm
from calibration.phases import TIMING, Phases
from calibration.skeleton import Skeleton
from pipeline.files import copy_atomically
from pipeline.options import CalibrateOptions, PrepareOptions
from pipeline.run import Context
from pipeline.serving import target_of
from pipeline.stages.campaign import Campaign, as_function
from pipeline.stages.common import skeleton_of
from pipeline.stages.measuring import devices, measurements
from pipeline.stages.precision import settle
from targets.base import Target
from targets.statistics import percentile_of, required_samples
from targets.timing import measure

DATABASE = "latency.sqlite"
ANCHOR, TAIL = "anchor", "tail.json"
PROBED = 8  # the share of networks after the start set that look for width cliffs: an eighth


def execute(context: Context) -> None:
    phases, skeleton = Phases(), skeleton_of(context.run)
    suffix = target_of(context.run).engine_suffix
    with phases.spent_on("settle precision"):
        settled = settle(context, skeleton.onnx_bytes, context.partial / f"{ANCHOR}{suffix}")
    target = settled.target
    earlier = context.run.folder / "calibrate" / DATABASE
    if earlier.exists() and not (context.partial / DATABASE).exists():
        copy_atomically(earlier, context.partial / DATABASE)  # what was measured stays measured
    anchor = settled.dense.record.engine
    own = context.partial / DATABASE
    with measurements(context, own, skeleton.sha256) as database:
        bench = Bench(
            target,
            Slicer(skeleton),
            anchor,
            settled.referee.candidate_batches,
            settled.keep_fp32,
            phases,
        )
        with phases.spent_on(TIMING):
            tails = context.remembered(TAIL, lambda: _tails(target, anchor))
        plan = _plan(context, skeleton, target)
        campaign = Campaign(context, bench, database, plan, tails)
        with devices(context, bench, anchor) as here:
            stopped = campaign.run(here)
        found = _findings(context, campaign)
    document = found | {"tail": tails, "stopped": stopped, "phases": phases.to_json()}
    context.write_json("calibration.json", document)
    _tell(context, document)


def _tails(target: Target, anchor: Path) -> dict[str, float]:
    """Percentiles of the dense network over its median."""
    with target.load(anchor) as engine:
        found = measure(engine, target.fingerprint(), calls=1000).samples
    few = len(found.clean_ms) < required_samples(99)  # others disturbed most of them
    ms = found.ms if few else found.clean_ms
    return {f"p{p}": percentile_of(ms, p) / percentile_of(ms, 50) for p in (50, 90, 99)}


def _plan(context: Context, skeleton: Skeleton, target: Target) -> SamplingPlan:
    options = context.options(CalibrateOptions)
    first = START if options.prior is None else START_WITH_PRIOR
    budgeted = max(0, options.samples - first) // PROBED if options.cliffs else 0
    return SamplingPlan(
        skeleton.groups,
        target.channel_multiple,
        options.samples,
        context.run.options("prepare", PrepareOptions).seed,
        probes(skeleton, budgeted),
        first,
    )


def _findings(context: Context, campaign: Campaign) -> dict[str, Any]:
    """Save the LPNet; everything that calibration.json says of it and of the measurements."""
    lpnet, records, skeleton = campaign.lpnet, campaign.records(), campaign.skeleton
    assert lpnet is not None
    lpnet.save(context.partial)
    floor = skeleton.groups.floor(campaign.bench.target.channel_multiple)
    anchor_ms = float(lpnet.get_buffer("anchor_ms"))
    seed = context.run.options("prepare", PrepareOptions).seed
    feasible = Feasibility.of(skeleton, records, as_function(lpnet), floor, anchor_ms)
    return {
        **_summary(context.options(CalibrateOptions), lpnet, records, feasible),
        "lost": sorted(campaign.lost().values()),
        "rounds": campaign.rounds,
        "curve": [asdict(point) for point in error_curve(records, campaign.fit, seed=seed)],
        "cliffs": [cliff.to_json() for cliff in step_maps(skeleton.groups, records)],
        "feasibility": feasible.to_json(campaign.aim()),
    }


def _tell(context: Context, document: dict[str, Any]) -> None:
    say, held, floor = context.reporter.say, document["held_out"], document["floor"]
    say(
        f"calibrate: LPNet's held-out error {held['mean']:.1%} (mean), {held['within_5']:.0%} of "
        f"{held['records']} networks within 5 %; dense {document['anchor_ms']:.3f} ms, "
        f"floor {floor['ms']:.3f} ms ({floor['ratio']:.2f}x)"
    )
    for cliff in document["cliffs"]:
        if cliff["step"] is not None and cliff["step"] > 1:
            say(
                f"calibrate: {cliff['group']} steps every {cliff['step']} channels, "
                f"{cliff['drop']:.1%} of the dense latency each"
            )
    say(f"calibrate: {document['feasibility']['verdict']}")
    if context.options(CalibrateOptions).fleet is None:  # else others spent it
        share = document["phases"]["share"][TIMING]
        say(f"calibrate: {share:.0%} of the time went into timed inference")


def _summary(
    options: CalibrateOptions,
    lpnet: LPNet,
    records: Sequence[LatencyRecord],
    feasible: Feasibility,
) -> dict[str, Any]:
    assert lpnet.held_out is not None
    assert lpnet.fingerprint is not None
    return {
        "target": options.target,
        "fingerprint": lpnet.fingerprint.to_json(),
        "anchor_ms": float(lpnet.get_buffer("anchor_ms")),
        "floor": {"ms": feasible.floor_ms, "ratio": feasible.floor_ratio},
        "samples": len(records),
        "held_out": asdict(lpnet.held_out),
        "scatter": [
            {
                "predicted": predicted,
                "measured": record.ratio,
                "low": record.ratio_ci95[0],
                "high": record.ratio_ci95[1],
            }
            for predicted, record in zip(lpnet.held_out_ratios, records, strict=True)
        ],
        "doubts": _doubts(records),
    }


def _doubts(records: Sequence[LatencyRecord]) -> list[str]:
    """How many measurements are less than sure, and why."""
    counts = Counter(kind for record in records for kind in {*map(_subject, record.doubts)})
    found = [
        f"{count} of {len(records)} measurements have doubts about the {kind}"
        for kind, count in sorted(counts.items())
    ]
    if slowed := int((~calm(records)).sum()):
        found.append(
            f"others slowed the machine in {slowed} of {len(records)} measurements; they count less"
        )
    return found


def _subject(doubt: str) -> str:
    """What a doubt is about: "candidate" and "anchor" say so, the rest is the machine's unrest."""
    subject, colon, _ = doubt.partition(":")
    return subject if colon else "machine"
