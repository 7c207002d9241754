"""Would a lower precision alone have done? The dense network in every precision of the runtime."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import BuildError
from pipeline.judging import FEWEST_PROCESSES, distribution, ratio_of
from pipeline.options import VerifyOptions
from pipeline.run import Context
from pipeline.serving import target_of
from pipeline.stages.precision import Referee
from targets import known_targets, load_target
from targets.base import Target, TargetOptions
from targets.blocks import BlockRun, OtherEngine, measure_blocks

PRECISIONS = ("-fp32", "-fp16", "-int8")


@dataclass(frozen=True)
class Alternative:
    """The dense network on another target of the runtime."""

    target: Target
    engine: OtherEngine | None  # None: it cannot be built within --precision-loss
    top1_loss: float | None
    reason: str = ""


def counterfactual(context: Context) -> dict[str, Any] | None:
    """The dense network at each other precision beside the engine, in the same fresh processes."""
    if not context.options(VerifyOptions).counterfactual:
        return None
    made = [_made(context, target) for target in siblings(target_of(context.run))]
    built = {one.target.name: one.engine for one in made if one.engine is not None}
    if not built:
        return {"alternatives": [_stated(one, None) for one in made], "best": None}
    blocks = _measured(context, built)
    best = min(("dense", *built), key=blocks.median_ms)
    return {
        "alternatives": [_stated(one, blocks) for one in made],
        "dense": distribution(blocks, "dense"),
        "engine": distribution(blocks, "engine"),
        "best": target_of(context.run).name if best == "dense" else best,
        "speedup": ratio_of(blocks, best, "engine"),  # of pruning, over the best dense engine
    }


def siblings(target: Target) -> list[Target]:
    """The same runtime at other precisions, as far as they can be built and run here."""
    stem = _stem(target.name)
    names = [name for name in sorted(known_targets()) if _stem(name) == stem]
    found = [_alike(name, target) for name in names if name != target.name]
    return [one for one in found if not one.is_available() and not one.is_buildable()]


def _stem(name: str) -> str:
    for ending in PRECISIONS:
        name = name.removesuffix(ending)
    return name


def _alike(name: str, target: Target) -> Target:
    """Another target with the same options, as far as it has them."""
    takes = load_target(name, TargetOptions()).takes
    shared = (target.options.chosen() & takes) - {"quantizer"}
    options = {key: getattr(target.options, key) for key in shared}
    return load_target(name, TargetOptions(**options))


def _made(context: Context, target: Target) -> Alternative:
    quantizers = target.quantizers()
    if quantizers:
        target = load_target(target.name, replace(target.options, quantizer=quantizers[0]))
    out = context.partial / f"dense-{target.name}{target.engine_suffix}"
    onnx = context.run.read("export", "dense.onnx").read_bytes()
    try:
        judged = Referee(context, target).build(onnx, out)
    except BuildError as error:
        out.unlink(missing_ok=True)
        return Alternative(target, None, None, error.message)
    return Alternative(target, OtherEngine(out, target.name, target.options), judged.loss)


def _measured(context: Context, built: dict[str, OtherEngine]) -> BlockRun:
    run, target, options = context.run, target_of(context.run), context.options(VerifyOptions)
    build = run.document("build", "build.json")

    def stop(blocks: BlockRun) -> bool:
        context.reporter.progress("dense at other precisions", blocks.processes, options.processes)
        best = min(("dense", *built), key=blocks.median_ms)
        low, high = blocks.ratio(best, "engine")[1]
        return blocks.processes >= FEWEST_PROCESSES and not low <= 1.0 <= high

    found = measure_blocks(
        target.name,
        target.options,
        {**{name: run.read("build", build[name]) for name in ("engine", "dense")}, **built},
        processes=options.processes,
        seconds_per_block=options.block_seconds,
        stop=stop,
    )
    for one in built.values():
        one.path.unlink()
    return found


def _stated(one: Alternative, blocks: BlockRun | None) -> dict[str, Any]:
    measured = blocks is not None and one.engine is not None
    return {
        "target": one.target.name,
        "precision": one.target.precision,
        "latency_ms": distribution(blocks, one.target.name) if blocks and measured else None,
        "top1_loss": one.top1_loss,  # on validation images, as --precision-loss counts it
        "reason": one.reason,
    }
