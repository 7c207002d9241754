"""package: the bundle a serving team gets, assembled from what was verified and nothing else."""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.bundle import Bundle, Manifest, write_bundle
from pipeline.data.base import DataCard
from pipeline.files import digest
from pipeline.options import PackageOptions
from pipeline.reference import REFERENCE
from pipeline.report import render_report
from pipeline.run import Context, Run
from pipeline.sbom import bill_of_materials
from pipeline.serving import target_of
from pipeline.stages.common import DATA_CARD, skeleton_of
from pipeline.triton import triton_repository
from targets.base import Target

BUNDLE = "bundle"


def execute(context: Context) -> None:
    run, target = context.run, target_of(context.run)
    engine = run.read("build", run.document("build", "build.json")["engine"])
    card = DataCard.from_json(run.read("prepare", DATA_CARD).read_text(encoding="utf-8"))
    shape = skeleton_of(run).input_shape
    name = context.options(PackageOptions).serve_name or _servable(run.folder.name)
    certificate = run.document("verify", "certificate.json")
    threads = certificate["fingerprint"]["threads"]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    files = {
        **_files_of(run, engine, created),
        **_triton_files(context, target, engine, name, card.classes),
    }
    manifest = Manifest(
        name=name,
        wgates=version("wgates"),
        created=created,
        target=target.name,
        threads=threads,
        batch=shape[0],
        options=_further_options(target),
        precision=target.precision,
        input_shape=shape,
        mean=card.mean,
        std=card.std,
        classes=card.classes,
        engine=engine.name,
        fingerprint=certificate["fingerprint"],
    )
    folder = context.partial / BUNDLE
    if folder.exists():  # a killed run left it half written
        shutil.rmtree(folder)
    folder.mkdir()
    write_bundle(folder, manifest, files)
    Bundle.open(folder)


def _files_of(run: Run, engine: Path, created: str) -> dict[str, Path | bytes]:
    return {
        "certificate.json": run.read("verify", "certificate.json"),
        engine.name: engine,
        "model.onnx": run.read("export", "model.onnx"),
        "plan.json": run.read("prune", "plan.json"),
        "weights.safetensors": run.read("finetune", "weights.safetensors"),
        REFERENCE: run.read("verify", REFERENCE),
        "sbom.cdx.json": bill_of_materials(engine.name, digest(engine), created),
        "report.html": render_report(run.folder).encode("utf-8"),
    }


def _triton_files(
    context: Context, target: Target, engine: Path, name: str, classes: tuple[str, ...]
) -> dict[str, Path | bytes]:
    """A Triton model repository; nothing where Triton cannot run such engines."""
    serving, say = target.triton(), context.reporter.say
    if serving is None:
        say(f"package: no backend of Triton runs engines of {target.name}: no repository")
        return {}
    for doubt in serving.doubts:
        say(f"package: {doubt}")
    files = triton_repository(
        name,
        serving,
        input_shape=skeleton_of(context.run).input_shape,
        classes=classes,
        served=target.served_files(engine),
        instances=context.options(PackageOptions).serve_instances,
    )
    return {f"triton/{path}": content for path, content in files.items()}


def _further_options(target: Target) -> dict[str, Any]:
    """The target's options that are not at their default, beside those with a field of their own"""
    chosen = target.options.chosen() - {"batch", "threads"}
    return {name: getattr(target.options, name) for name in sorted(chosen)}


def _servable(name: str) -> str:
    """The run's name with what Triton does not take in a model name replaced."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".-") or "model"
