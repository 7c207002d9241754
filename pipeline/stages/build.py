"""build: the optimised engine, and the dense one it will be measured beside."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from pipeline.options import BuildOptions
from pipeline.run import Context
from pipeline.serving import settled_keep_fp32, target_of
from pipeline.stages.common import build_engine, plan_of, skeleton_of
from pipeline.stages.precision import Referee
from pipeline.stages.removed_nodes import still_there


def execute(context: Context) -> None:
    target = target_of(context.run)
    model = context.run.read("export", "model.onnx").read_bytes()
    engine = context.partial / f"engine{target.engine_suffix}"
    dense = context.partial / f"dense{target.engine_suffix}"
    referee, keep = Referee(context, target), settled_keep_fp32(context.run)
    made_dense = referee.build(context.run.read("export", "dense.onnx").read_bytes(), dense, keep)
    there = still_there(keep, skeleton_of(context.run), plan_of(context.run)) if keep else ()
    made = referee.build(model, engine, there)
    builds = [{"seconds": made.seconds, **_describe(engine), "file": None}]
    for index in range(1, context.options(BuildOptions).builds):
        repeat = engine.with_stem(f"repeat{index}")
        started = time.perf_counter()
        kept = made.record.kept_fp32
        build_engine(context, target, model, repeat, referee.batches, keep_fp32=kept)
        seconds, described = time.perf_counter() - started, _describe(repeat)
        alike = described["sha256"] in {build["sha256"] for build in builds}
        builds.append({"seconds": seconds, **described, "file": None if alike else repeat.name})
        if alike:
            repeat.unlink()  # the same engine; others are timed by verify
    context.write_json(
        "build.json",
        {
            "engine": engine.name,
            "dense": dense.name,
            "builds": builds,
            "identical": len({build["sha256"] for build in builds}) == 1,
            "engine_bytes": engine.stat().st_size,
            "dense_bytes": dense.stat().st_size,
            "precision": {"engine": made.to_json(), "dense": made_dense.to_json()},
        },
    )


def _describe(path: Path) -> dict[str, str | int]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
