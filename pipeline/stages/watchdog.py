"""Time limits for what a runtime does in a stage, in processes of its own and in ours."""

from __future__ import annotations

from pipeline.hanging import Watch
from pipeline.options import CalibrateOptions
from pipeline.run import Context


def watchdog_s(context: Context) -> float:
    """How long a runtime may take for one thing: a candidate, a build, an answer."""
    return 60 * context.run.options("calibrate", CalibrateOptions).watchdog


def watch_of(context: Context) -> Watch:
    """Ends the process, and says so in the run's events, if the runtime does not come back."""

    def note(reason: str) -> None:
        context.run.event("stage failed", stage=context.stage.name, reason=reason)

    again = f"if it needs more time: pipeline run --out {context.run.folder} --watchdog MINUTES"
    return Watch(watchdog_s(context), again, note)
