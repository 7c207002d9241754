"""A bundle around any ONNX network, as `pipeline package` would write it but for the evidence."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnx

from pipeline.bundle import Manifest, write_bundle
from targets import load_target
from targets.base import TargetOptions

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def make_bundle(
    folder: Path, model: bytes, *, target: str, classes: tuple[str, ...], device: str = ""
) -> Manifest:
    """Build `model`, of static shape, for one thread and write its bundle into a new folder.

    `device` makes it one that was certified elsewhere.
    """
    graph = onnx.load_from_string(model).graph
    n, c, h, w = (size.dim_value for size in graph.input[0].type.tensor_type.shape.dim)
    loaded = load_target(target, TargetOptions(batch=n, threads=1))
    engine = f"engine{loaded.engine_suffix}"
    folder.mkdir(parents=True)
    built = loaded.build(model, folder.parent / f"{folder.name}-{engine}").engine
    manifest = Manifest(
        name=folder.name,
        wgates=version("wgates"),
        created="2026-01-02T03:04:05+00:00",
        target=target,
        threads=1,
        batch=n,
        options={},
        precision=loaded.precision,
        input_shape=(n, c, h, w),
        mean=MEAN[:c],
        std=STD[:c],
        classes=classes,
        engine=engine,
        fingerprint=loaded.fingerprint().to_json() | ({"device": device} if device else {}),
    )
    certificate = json.dumps({"schema": 1, "verdict": "met"}).encode()
    files: dict[str, Path | bytes] = {engine: built, "certificate.json": certificate}
    written = write_bundle(folder, manifest, {**files, "model.onnx": model})
    return replace(manifest, files=written.files)
