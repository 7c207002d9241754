"""Candidate and baseline as engines that run here: bundles as they are, ONNX files built first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from pipeline.bundle import Bundle, target_options
from pipeline.errors import BuildError, BundleError, DeployError, FingerprintError
from pipeline.files import digest
from pipeline.hanging import Watch
from pipeline.manifest import REPACK
from targets import load_target
from targets.base import Images, Target, TargetOptions
from targets.errors import TargetUnavailableError
from targets.fake import signature_of
from targets.fingerprint import Fingerprint

PLAN = "model.onnx"  # of a bundle: the fp32 graph that its engine was built from


@dataclass(frozen=True)
class Side:
    """One engine of a check."""

    name: str  # as the user gave it, without folders
    sha256: str  # of the bundle's manifest or of the ONNX file
    engine: Path
    onnx: Path | None  # the fp32 graph behind the engine
    bundle: Bundle | None = None

    @property
    def certificate(self) -> Mapping[str, Any] | None:
        """What the bundle's verify stage stated; None for an ONNX file."""
        return None if self.bundle is None else self.bundle.certificate

    def certified_elsewhere(self, here: Fingerprint) -> tuple[str, ...]:
        """How the set-up of the bundle's certificate differs from this one."""
        if self.bundle is None:
            return ()
        try:
            return Fingerprint.from_json(self.bundle.manifest.fingerprint).differences(here)
        except (ValueError, TypeError) as error:
            raise BundleError(f"the manifest's fingerprint: {error}", fix=REPACK) from error


@dataclass(frozen=True)
class Sides:
    """What is compared, and the target that runs all of it."""

    target: Target
    candidate: Side
    baseline: Side | None
    watch: Watch = Watch()  # noqa: RUF009  a frozen value

    def engines(self) -> dict[str, Path]:
        """Engine files by the names that blocks have."""
        engines = {"candidate": self.candidate.engine}
        return engines if self.baseline is None else engines | {"baseline": self.baseline.engine}


@dataclass(frozen=True)
class BuildWish:
    """How ONNX files are built: target and threads as asked, int8 ranges from `batches`."""

    target: str | None
    threads: int
    folder: Path  # for the engines
    batches: tuple[Images, ...] = ()
    watch: Watch = Watch()  # noqa: RUF009  a frozen value


def open_sides(candidate: Path, baseline: Path | None, wish: BuildWish) -> Sides:
    """Both engines, on one target with one set of options.

    FingerprintError if they do not run alike, TargetUnavailableError if not at all.
    """
    paths = [candidate] if baseline is None else [candidate, baseline]
    bundles = [Bundle.open(path) if path.is_dir() else None for path in paths]
    target = _target(paths, bundles, wish)
    if reasons := target.is_available():
        raise TargetUnavailableError(
            f"target {target.name} cannot run here: {'; '.join(reasons)}",
            fix=f"see: pipeline targets --explain {target.name}",
        )
    sides = [
        _of_bundle(bundle) if bundle else _built(path, target, label, wish)
        for path, bundle, label in zip(paths, bundles, ("candidate", "baseline"), strict=False)
    ]
    return Sides(target, sides[0], sides[1] if len(sides) > 1 else None, wish.watch)


def _target(paths: Iterable[Path], bundles: Iterable[Bundle | None], wish: BuildWish) -> Target:
    """The one target of all bundles; that of `wish` where there is none."""
    known = [_of_manifest(bundle) for bundle in bundles if bundle is not None]
    for name, options in known:
        if (name, options) != known[0]:
            raise FingerprintError(
                f"the two do not run alike: {_told(*known[0])}, and {_told(name, options)}",
                fix="compare bundles of one target, batch, threads and settings",
            )
    if not known:
        return _wished(paths, wish)
    name, options = known[0]
    if wish.target not in (None, name):
        raise FingerprintError(
            f"the bundle is of target {name}, not of {wish.target}",
            fix="leave --target out, or give ONNX files",
        )
    return load_target(name, options)


def _of_manifest(bundle: Bundle) -> tuple[str, TargetOptions]:
    return bundle.manifest.target, target_options(bundle.manifest)


def _wished(paths: Iterable[Path], wish: BuildWish) -> Target:
    if wish.target is None:
        raise DeployError(
            "an ONNX file does not say what runs it", fix="give --target; see: pipeline targets"
        )
    batches = {_batch_of(path) for path in paths}
    if len(batches) > 1:
        raise FingerprintError(
            f"the two take different batches: {' and '.join(map(str, sorted(batches)))}",
            fix="export both with the same static batch",
        )
    return load_target(
        wish.target, TargetOptions(batch=batches.pop(), threads=wish.threads or None)
    )


def image_size_of(path: Path) -> int:
    """Side of the square images that a bundle or an ONNX file takes, in pixels."""
    if path.is_dir():
        height, width = Bundle.open(path).manifest.input_shape[2:]
    else:
        height, width = _input_shape(path)[2:]
    if height != width:
        raise BuildError(
            f"{path.name} takes images of {height} by {width} pixels, and data is made square",
            fix="leave --data out",
        )
    return height


def _batch_of(path: Path) -> int:
    """The static batch of an ONNX file."""
    return _input_shape(path)[0]


def _input_shape(path: Path) -> tuple[int, int, int, int]:
    """(N, C, H, W) of an ONNX file; BuildError unless it takes one static image tensor."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise BuildError(
            f"{path.name} is neither a bundle nor an ONNX file: {error}",
            fix="give a bundle's folder or an ONNX file",
        ) from error
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    sizes = inputs[0].type.tensor_type.shape.dim if inputs else []
    batch = sizes[0].dim_value if sizes else 0
    if batch < 1:
        raise BuildError(
            f"{path.name} has no static batch", fix="export it with static shapes: (N, C, H, W)"
        )
    return signature_of(model, batch).input_shape


def _of_bundle(bundle: Bundle) -> Side:
    return Side(
        name=bundle.manifest.name,
        sha256=digest(bundle.folder / "manifest.json"),
        engine=bundle.path(bundle.manifest.engine),
        onnx=bundle.path(PLAN) if PLAN in bundle.manifest.files else None,
        bundle=bundle,
    )


def _built(path: Path, target: Target, label: str, wish: BuildWish) -> Side:
    if target.precision == "int8" and not wish.batches:
        raise BuildError(
            "an int8 engine takes its ranges from images, and none were given",
            fix="give --data, whose training images are used, or a bundle",
        )
    out = wish.folder / f"{label}{target.engine_suffix}"
    record = wish.watch.build(target, path, out, wish.batches)
    return Side(name=path.name, sha256=digest(path), engine=record.engine, onnx=path)


def _told(name: str, options: TargetOptions) -> str:
    chosen = sorted(options.chosen() | {"batch", "threads"})
    return f"{name} ({', '.join(f'{item} {getattr(options, item)}' for item in chosen)})"
