"""A bundle verified again on this machine: parity, accuracy, latency, and what differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pipeline.budget import Budget
from pipeline.bundle import Bundle, target_options
from pipeline.errors import BundleError, ParityError, TargetUnavailableError
from pipeline.hanging import Watch
from pipeline.judging import Judge, distribution, share
from pipeline.manifest import REPACK
from pipeline.options import VerifyOptions
from pipeline.reference import REFERENCE, Reference, parity
from pipeline.serving import TOLERANCE
from targets import load_target
from targets.base import Precision, Target
from targets.blocks import BlockRun, measure_blocks
from targets.fingerprint import Fingerprint


@dataclass(frozen=True)
class Recheck:
    """What of a bundle is looked at again, and on which target."""

    bundle: Bundle
    target: Target
    options: VerifyOptions
    data: str | None = None  # images, named as for prepare; None: accuracy is not measured
    watch: Watch = Watch()  # noqa: RUF009  a frozen value


def recheck_of(
    bundle: Bundle,
    options: VerifyOptions,
    data: str | None,
    watch: Watch = Watch(),  # noqa: B008  a frozen value
) -> Recheck:
    """TargetUnavailableError with every reason if the bundle's target cannot run here."""
    target = load_target(bundle.manifest.target, target_options(bundle.manifest))
    if reasons := target.is_available():
        raise TargetUnavailableError(
            f"target {target.name} cannot run here: {'; '.join(reasons)}",
            fix=f"see: pipeline targets --explain {target.name}",
        )
    return Recheck(bundle, target, options, data, watch)


def verify_bundle(asked: Recheck) -> dict[str, Any]:
    """Repeat what the certificate says with the engine as it lies in the bundle."""
    engine = asked.bundle.path(asked.bundle.manifest.engine)
    return {
        "target": asked.target.name,
        "signed": asked.bundle.signed,
        "differences": list(differences(asked)),
        "parity": checked_parity(asked, engine)[0],
        "accuracy": accuracy(asked, engine),
        **latency(asked, measured(asked, {"engine": engine})),
    }


def differences(asked: Recheck) -> tuple[str, ...]:
    """How this set-up differs from the certificate's, field by field."""
    try:
        certified = Fingerprint.from_json(asked.bundle.manifest.fingerprint)
    except (ValueError, TypeError) as error:
        raise BundleError(f"the manifest's fingerprint: {error}", fix=REPACK) from error
    return certified.differences(asked.target.fingerprint())


def checked_parity(asked: Recheck, engine: Path) -> tuple[dict[str, Any], Reference]:
    """An engine against what torch, and the certified engine, said to the bundle's noise.

    And the reference with what this engine says.
    """
    manifest = asked.bundle.manifest
    reference = Reference.from_bytes(asked.bundle.read(REFERENCE))
    if reference.pixels.shape[1:] != manifest.input_shape[1:]:
        raise BundleError(f"{REFERENCE} is of other images than the engine's", fix=REPACK)
    with asked.watch.load(asked.target, engine) as loaded:
        logits = asked.watch.infer(loaded, reference.images(manifest.mean, manifest.std))
    if logits.shape != reference.torch.shape:
        raise BundleError(f"{REFERENCE} is of another number of classes", fix=REPACK)
    found = parity(reference.torch, logits)
    tolerance = _tolerance(asked)
    if not found["max_rel"] <= tolerance:
        raise ParityError(
            f"engine and torch differ by {found['max_rel']:.1e} of the largest logit",
            fix=f"allow it with --engine-tolerance, now {tolerance:g}",
        )
    against = parity(reference.engine, logits)["max_rel"]
    told = {**found, "tolerance": tolerance, "max_rel_to_certified": against}
    return told, replace(reference, engine=logits)


def _tolerance(asked: Recheck) -> float:
    if asked.options.engine_tolerance is not None:
        return asked.options.engine_tolerance
    return TOLERANCE[cast("Precision", asked.bundle.manifest.precision)]


def accuracy(asked: Recheck, engine: Path) -> dict[str, Any] | None:
    """Top-1 through an engine on the data's test images; None where no data was given."""
    if asked.data is None:
        return None
    from pipeline.testing import top1_of  # torch reads the images

    manifest = asked.bundle.manifest
    with asked.watch.load(asked.target, engine) as loaded:
        right, n, digest = top1_of(loaded, asked.data, manifest, asked.watch)
    certified = asked.bundle.certificate.get("data_sha256")
    return {**share(right / n, n), "data_sha256": digest, "same_data": digest == certified}


def measured(asked: Recheck, engines: Mapping[str, Path]) -> BlockRun:
    """Blocks of fresh processes, the engines interleaved."""
    return measure_blocks(
        asked.target.name,
        asked.target.options,
        engines,
        processes=asked.options.processes,
        seconds_per_block=asked.options.block_seconds,
    )


def latency(asked: Recheck, blocks: BlockRun) -> dict[str, Any]:
    """The engine's latency here, beside the certified one, and the budget's verdict here."""
    certified = stated(asked.bundle.certificate, "latency_ms", "engine", "p50")
    here = distribution(blocks, "engine")
    judge = judge_of(asked.bundle.certificate)
    return {
        "latency_ms": here,
        "certified_ms": certified,
        "change": here["p50"] / certified - 1,
        "budget_ms": asked.bundle.certificate.get("budget_ms"),
        "verdict": judge.verdict(blocks) if judge else str(asked.bundle.certificate.get("verdict")),
        "doubts": list(judge.doubts(blocks) if judge else blocks.doubts()),
    }


def judge_of(certificate: Mapping[str, Any]) -> Judge | None:
    """Holds engines against the budget in ms, as certified; None: a count cannot have changed."""
    if certificate.get("budget_ms") is None:
        return None
    budget = Budget(stated(certificate, "budget_ms"), "ms")
    percentile = str(certificate.get("percentile", "p50")).removeprefix("p")
    if percentile not in ("50", "90", "99"):
        raise BundleError("the certificate's percentile is none", fix=REPACK)
    return Judge(budget, int(percentile))


def stated(certificate: Mapping[str, Any], *keys: str) -> float:
    """A number above zero of a certificate; BundleError if it is not there."""
    found: Any = certificate
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    if type(found) not in (int, float) or not 0 < found < 1e12:
        raise BundleError(f"the certificate states no {'.'.join(keys)}", fix=REPACK)
    return float(found)
