"""build: the optimised engine, and the dense one it will be measured beside."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from pipeline.options import BuildOptions
from pipeline.run import Context
from pipeline.serving import target_of
from pipeline.stages.common import build_engine


def execute(context: Context) -> None:
    target = target_of(context.run)
    model = context.run.read("export", "model.onnx").read_bytes()
    engine = context.partial / f"engine{target.engine_suffix}"
    dense = context.partial / f"dense{target.engine_suffix}"
    build_engine(target, context.run.read("export", "dense.onnx").read_bytes(), dense)
    builds = []
    for index in range(max(1, context.options(BuildOptions).builds)):
        out = engine if index == 0 else engine.with_stem(f"repeat{index}")
        started = time.perf_counter()
        build_engine(target, model, out)
        builds.append({"seconds": time.perf_counter() - started, **_describe(out)})
        if index:
            out.unlink()
    context.write_json(
        "build.json",
        {
            "engine": engine.name,
            "dense": dense.name,
            "builds": builds,
            "identical": len({build["sha256"] for build in builds}) == 1,
            "dense_bytes": dense.stat().st_size,
        },
    )


def _describe(path: Path) -> dict[str, str | int]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
