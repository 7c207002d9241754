"""The run's target, without torch: what the command line checks before it trains anything."""

from __future__ import annotations

from pipeline.options import CalibrateOptions, TraceOptions
from pipeline.run import Run
from targets import load_target
from targets.base import Target, TargetOptions
from targets.errors import TargetUnavailableError


def target_of(run: Run) -> Target:
    """The run's target; TargetUnavailableError with every reason if it cannot run here."""
    options = run.options("calibrate", CalibrateOptions)
    batch = run.options("trace", TraceOptions).batch
    target = load_target(
        options.target, TargetOptions(batch=batch, threads=options.threads or None)
    )
    if reasons := target.is_available():
        raise TargetUnavailableError(
            f"target {options.target} cannot run here: {'; '.join(reasons)}",
            fix="see: pipeline targets",
        )
    return target
