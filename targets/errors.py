"""Errors of the target adapters; the whole tree is drawn in `pipeline/errors.py`."""

from __future__ import annotations


class DeployError(Exception):
    """An expected failure: what happened, and what to do next.

    The command line prints both in one line and exits with code 1; a traceback means a bug.
    """

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} ({self.fix})" if self.fix else self.message


class TargetUnavailableError(DeployError):
    """The runtime or the device of a target is missing here."""


class BuildError(DeployError):
    """The runtime refused the model, or cannot build it in the wanted precision."""


class EngineError(DeployError):
    """A built engine could not be loaded, or failed while running."""


class FingerprintError(DeployError):
    """Two latencies were to be compared whose fingerprints differ."""
