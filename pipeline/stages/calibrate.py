"""calibrate: ground-truth latencies of sampled widths on the real runtime, and the LPNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from calibration.candidates import Slicer
from calibration.database import LatencyRecord
from calibration.lpnet import LPNet, fit_lpnet
from calibration.measure import Bench
from calibration.sampling import first_widths
from calibration.widths import WidthVector
from pipeline.files import copy_atomically
from pipeline.options import CalibrateOptions, PrepareOptions
from pipeline.run import Context
from pipeline.serving import target_of
from pipeline.stages.common import skeleton_of
from pipeline.stages.measuring import devices, measurements
from pipeline.stages.precision import settle
from targets.timing import measure

DATABASE = "latency.sqlite"
ANCHOR = "anchor"


def execute(context: Context) -> None:
    options, skeleton = context.options(CalibrateOptions), skeleton_of(context.run)
    suffix = target_of(context.run).engine_suffix
    settled = settle(context, skeleton.onnx_bytes, context.partial / f"{ANCHOR}{suffix}")
    target = settled.target
    seed = context.run.options("prepare", PrepareOptions).seed
    fingerprint = target.fingerprint()
    wanted = first_widths(skeleton.groups, target.channel_multiple, options.samples, seed=seed)
    earlier = context.run.folder / "calibrate" / DATABASE
    if earlier.exists() and not (context.partial / DATABASE).exists():
        copy_atomically(earlier, context.partial / DATABASE)  # what was measured stays measured
    anchor = settled.dense.record.engine
    own = context.partial / DATABASE
    with measurements(context, own, skeleton.sha256) as database, target.load(anchor) as engine:
        bench = Bench(
            target,
            Slicer(skeleton),
            engine,
            settled.referee.candidate_batches,
            settled.keep_fp32,
        )
        with devices(context, bench) as found:
            found.measure(
                database,
                wanted,
                precision=options.precision,
                on_done=lambda done, all_: context.reporter.progress("measure widths", done, all_),
            )
        records = database.records(skeleton.sha256, fingerprint)
        tail = measure(engine, fingerprint, calls=1000)
    lpnet = fit_lpnet(
        records,
        skeleton,
        fingerprint,
        block=target.channel_block,
        on_fold=lambda done, total: context.reporter.progress("fit LPNet", done, total),
    )
    lpnet.save(context.partial)
    floor = skeleton.groups.floor(target.channel_multiple)
    tails = {f"p{p}": tail.percentile_ms(p) / tail.median_ms() for p in (50, 90, 99)}
    document = _summary(options, lpnet, records, floor) | {"tail": tails}
    context.write_json("calibration.json", document)
    held = lpnet.held_out
    assert held is not None
    context.reporter.say(
        f"calibrate: LPNet's held-out error {held.mean:.1%} (mean), {held.within_5:.0%} of "
        f"{held.records} networks within 5 %; dense {document['anchor_ms']:.3f} ms, "
        f"floor {document['floor']['ms']:.3f} ms ({document['floor']['ratio']:.2f}x)"
    )


def _summary(
    options: CalibrateOptions,
    lpnet: LPNet,
    records: Sequence[LatencyRecord],
    floor: WidthVector,
) -> dict[str, Any]:
    assert lpnet.held_out is not None
    assert lpnet.fingerprint is not None
    anchor_ms = float(lpnet.get_buffer("anchor_ms"))
    floor_ratio = next(r.ratio for r in records if r.widths == floor)
    doubtful = [doubt for record in records for doubt in record.doubts]
    kinds, counts = np.unique([_subject(doubt) for doubt in doubtful], return_counts=True)
    return {
        "target": options.target,
        "fingerprint": lpnet.fingerprint.to_json(),
        "anchor_ms": anchor_ms,
        "floor": {"ms": floor_ratio * anchor_ms, "ratio": floor_ratio},
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
        "doubts": [
            f"{count} of {len(records)} measurements have doubts about the {kind}"
            for kind, count in zip(kinds, counts, strict=True)
        ],
    }


def _subject(doubt: str) -> str:
    """What a doubt is about: "candidate" and "anchor" say so, the rest is the machine's unrest."""
    subject, colon, _ = doubt.partition(":")
    return subject if colon else "machine"
