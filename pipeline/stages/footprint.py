"""What serving an engine costs beside its latency: cold start, memory, and the luck of a build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pipeline.judging import FEWEST_PROCESSES, ratio_of
from pipeline.options import VerifyOptions
from pipeline.reference import Reference, noise, normalised
from pipeline.run import Context
from pipeline.serving import target_of
from pipeline.stages.common import compact_model, data_of, skeleton_of
from targets.blocks import measure_blocks
from targets.cold import cold_starts, summary


def footprint(context: Context) -> dict[str, Any] | None:
    """Cold start and memory of the engine and the dense one, in processes of their own."""
    options, run, target = context.options(VerifyOptions), context.run, target_of(context.run)
    if not options.cold_starts:
        return None
    build = run.document("build", "build.json")
    engines = {name: run.read("build", build[name]) for name in ("engine", "dense")}
    context.reporter.progress("cold starts", 0, 1)
    found = cold_starts(target.name, target.options, engines, starts=options.cold_starts)
    context.reporter.progress("cold starts", 1, 1)
    return {name: summary(starts) for name, starts in found.items()}


def build_spread(context: Context, build: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every build; those that differ from the shipped one with their latency as its multiple.

    Builds of the same bytes are the same engine: their spread is nought, and is not measured.
    """
    others = {f"build {n}": b["file"] for n, b in enumerate(build["builds"], 1) if b.get("file")}
    ratios: dict[str, Any] = {}
    if others:
        run, target = context.run, target_of(context.run)
        files = {name: run.read("build", file) for name, file in others.items()}
        blocks = measure_blocks(
            target.name,
            target.options,
            {"engine": run.read("build", build["engine"]), **files},
            processes=FEWEST_PROCESSES,
            seconds_per_block=context.options(VerifyOptions).block_seconds,
        )
        ratios = {name: ratio_of(blocks, name, "engine") for name in others}
    return [
        {
            "seconds": item["seconds"],
            "bytes": item["bytes"],
            "sha256": item["sha256"],
            "ratio": ratios.get(f"build {number}"),
        }
        for number, item in enumerate(build["builds"], 1)
    ]


def reference_of(context: Context) -> Reference:
    """Noise through torch and through the shipped engine, for parity where there is no data."""
    run, card = context.run, data_of(context).card
    pixels = noise(skeleton_of(run).input_shape)
    images = normalised(pixels, card.mean, card.std)
    file = run.read("build", run.document("build", "build.json")["engine"])
    with target_of(run).load(file) as engine, torch.no_grad():
        expected = compact_model(context)(torch.from_numpy(images)).numpy()
        return Reference(pixels, expected, engine.infer(images))
