"""The same plan and weights on a new runtime, driver or device: built, measured, certified anew."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calibration.widths import dump
from pipeline.bundle import Bundle, write_bundle
from pipeline.errors import DeployError, EngineError
from pipeline.files import digest, disk_faults_told, refuse_taken
from pipeline.judging import ratio_of, unmeasured
from pipeline.manifest import CERTIFICATE, MANIFEST
from pipeline.recheck import Recheck, accuracy, checked_parity, latency, measured
from pipeline.reference import REFERENCE
from pipeline.report import render_comparison
from pipeline.report.comparison import changes
from pipeline.sbom import bill_of_materials
from pipeline.triton import CONFIG, headed
from targets.base import BuildRecord, Images

PREVIOUS, DIFFERENCE = "previous", "recertification.json"
REPORT, SBOM = "report.html", "sbom.cdx.json"
REPLACED = (CERTIFICATE, REFERENCE, REPORT, SBOM, DIFFERENCE)


def recertify(asked: Recheck, out: Path) -> dict[str, Any]:
    """Write a new bundle to `out` and return its certificate. The old bundle stays as it is; its
    engine, certificate and manifest also lie in the new one, under `previous/`."""
    refuse_taken(out)
    with disk_faults_told(f"cannot write {out}"):
        out.mkdir(parents=True)
        working = out.with_name(f".{out.name}.partial")
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir()

        def clear(reason: str) -> None:
            shutil.rmtree(working, ignore_errors=True)
            out.rmdir()

        try:
            watch = replace(asked.watch, before_the_end=clear)
            certificate = _recertified(replace(asked, watch=watch), working)
            (working / "new").replace(out)
        except BaseException:
            out.rmdir()
            raise
        finally:
            shutil.rmtree(working)
    return certificate


def _recertified(asked: Recheck, working: Path) -> dict[str, Any]:
    made = _build(asked, working)
    engine = made.engine
    parity, reference = checked_parity(asked, engine)
    certificate = _certificate(asked, made, parity)
    old, name = asked.bundle.certificate, asked.bundle.manifest.name
    found = {place: {"was": was, "is": is_} for place, was, is_ in changes(old, certificate)}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    files = {
        **_files(asked, engine),
        REFERENCE: reference.to_bytes(),
        CERTIFICATE: dump(certificate).encode(),
        DIFFERENCE: dump(found).encode(),
        REPORT: render_comparison(name, old, certificate).encode(),
        SBOM: bill_of_materials(engine.name, digest(engine), created),
    }
    manifest = replace(
        asked.bundle.manifest,
        wgates=version("wgates"),
        created=created,
        engine=engine.name,
        fingerprint=certificate["fingerprint"],
        files={},
    )
    new = working / "new"
    new.mkdir()
    write_bundle(new, manifest, files)
    Bundle.open(new)
    return certificate


def _build(asked: Recheck, working: Path) -> BuildRecord:
    """The engine anew from the bundle's graph, with the same nodes in fp32."""
    build = asked.bundle.certificate.get("build") or {}
    out = working / f"engine{asked.target.engine_suffix}"
    batches = _range_batches(asked, int(build.get("range_images", 128)))
    onnx = asked.bundle.read("model.onnx")
    kept = build.get("kept_fp32", ())
    return asked.watch.build(asked.target, onnx, out, batches, keep_fp32=kept)


def _range_batches(asked: Recheck, count: int) -> tuple[Images, ...]:
    """Training images, which int8 takes its ranges from and fp16 is held against."""
    if asked.target.precision == "fp32":
        return ()
    if asked.data is None:
        raise DeployError(
            f"{asked.target.name} is built with training images", fix="give them: --data SPEC"
        )
    from pipeline.testing import range_images  # torch reads the images

    return range_images(asked.data, asked.bundle.manifest, count)


def _certificate(asked: Recheck, made: BuildRecord, parity: Mapping[str, Any]) -> dict[str, Any]:
    """The old certificate with all that depends on the engine measured here or left empty."""
    old, engine = asked.bundle.certificate, made.engine
    engines = {"engine": engine, **_previous(asked)}
    blocks = measured(asked, engines)
    found = latency(asked, blocks)
    top1 = accuracy(asked, engine)
    nothing = {"top1": None, "n": 0, "ci95": None}
    doubts = [*found["doubts"], "the dense network was not measured here"]
    if top1 is None:
        doubts.append("accuracy through this engine was not measured: no data was given")
    sizes = {**(old.get("engine_bytes") or {}), "pruned": engine.stat().st_size}
    return {
        **old,
        "fingerprint": blocks.fingerprint.to_json(),
        "latency_ms": {
            "engine": found["latency_ms"],
            "dense": unmeasured(),
            "predicted": unmeasured(),  # a ratio to the dense network
        },
        "speedup": {"median": None, "ci95": None},
        "previous": ratio_of(blocks, "previous", "engine") if len(engines) > 1 else None,
        "verdict": found["verdict"],
        "accuracy": {**(old.get("accuracy") or {}), "engine": top1 or nothing},
        "attribution": [],
        "parity": parity,
        "engine_bytes": sizes,
        "build": {
            **(old.get("build") or {}),
            "kept_fp32": list(made.kept_fp32),
            "identical": None,  # it was built once
            "builds": [],
        },
        "footprint": None,
        "counterfactual": None,
        "doubts": doubts,
    }


def _previous(asked: Recheck) -> dict[str, Path]:
    """The certified engine, to be timed beside the new one, where it still loads here."""
    path = asked.bundle.path(asked.bundle.manifest.engine)
    try:
        asked.watch.load(asked.target, path).close()
    except EngineError:
        return {}  # `previous` is null in the certificate: there is nothing to compare with
    return {"previous": path}


def _files(asked: Recheck, engine: Path) -> dict[str, Path | bytes]:
    """What stays, the new engine, its served form, and the old engine for a rollback."""
    bundle = asked.bundle
    old = bundle.manifest.engine
    kept: dict[str, Path | bytes] = {
        name: bundle.path(name)
        for name in bundle.manifest.files
        if name not in (*REPLACED, old) and not name.startswith(f"{PREVIOUS}/")
    }
    served = asked.target.served_files(engine)
    for name in [name for name in kept if name.startswith("triton/") and "/1/" in name]:
        if (content := served.get(name.rpartition("/")[2])) is not None:
            kept[name] = content
    kept |= _triton_heads(asked)
    return {
        **kept,
        engine.name: engine,
        f"{PREVIOUS}/{old}": bundle.path(old),
        f"{PREVIOUS}/{CERTIFICATE}": bundle.path(CERTIFICATE),
        f"{PREVIOUS}/{MANIFEST}": bundle.folder / MANIFEST,
    }


def _triton_heads(asked: Recheck) -> dict[str, bytes]:
    """Triton's configurations, whose heads say what holds for this machine and runtime."""
    bundle, serving = asked.bundle, asked.target.triton()
    if serving is None:
        return {}
    heads = {}
    for name in bundle.manifest.files:
        if name.startswith("triton/") and name.endswith(f"/{CONFIG}"):
            text = bundle.read(name).decode("utf-8", "surrogateescape")
            text = headed(text, serving, batch=bundle.manifest.batch)
            heads[name] = text.encode("utf-8", "surrogateescape")
    return heads
