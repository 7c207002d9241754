"""The run's target, without torch: what the command line checks before it trains anything."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.options import CalibrateOptions, TraceOptions
from pipeline.run import Run
from targets import load_target
from targets.base import Precision, Target, TargetOptions
from targets.errors import TargetUnavailableError

SETTLED = "precision.json"  # of calibrate: the int8 form, and the nodes that stay in fp32
# of an engine's logits against its network's, as a share of the largest logit; int8 is held to its
# top-1 when it is built, here only to being sane
TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 1.0}


def target_of(run: Run, *, quantizer: str | None = None) -> Target:
    """The run's target; TargetUnavailableError with every reason if it cannot run here.

    `quantizer` overrides the run's own; None: as asked, or as calibrate settled it.
    """
    options = run.options("calibrate", CalibrateOptions)
    target = load_target(
        options.target,
        TargetOptions(
            batch=run.options("trace", TraceOptions).batch,
            threads=options.threads or None,
            spinning=options.spinning,
            device_time=options.device_time,
            cuda_graph=options.cuda_graph,
            quantizer=_quantizer(run, options) if quantizer is None else quantizer,
            compute_capabilities=_listed(options.compute_capabilities),
        ),
    )
    if reasons := target.is_available():
        raise TargetUnavailableError(
            f"target {options.target} cannot run here: {'; '.join(reasons)}",
            fix=f"see: pipeline targets --explain {options.target}",
        )
    return target


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def settled_keep_fp32(run: Run) -> tuple[str, ...]:
    """The nodes that calibrate found must stay in fp32."""
    return tuple(run.document("calibrate", SETTLED)["kept_fp32"])


def _quantizer(run: Run, options: CalibrateOptions) -> str:
    if options.quantizer != "auto":
        return options.quantizer
    if not (run.folder / "calibrate" / SETTLED).exists():
        return ""
    return str(run.document("calibrate", SETTLED)["quantizer"])
