"""Errors of the target adapters; the whole tree is drawn in `pipeline/errors.py`."""

from __future__ import annotations

MOST_SHOWN = 800  # characters of a message: a runtime may quote a whole file


class DeployError(Exception):
    """An expected failure: what happened, and what to do next.

    The command line prints both in one line and exits with code 1; a traceback means a bug.
    """

    def __init__(self, message: str, *, fix: str = "") -> None:
        shown = _one_line(message)
        super().__init__(shown)
        self.message = shown
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} ({self.fix})" if self.fix else self.message


def _one_line(message: str) -> str:
    """Readable on any terminal: foreign texts may hold line breaks, control codes, or a lot."""
    line = " ".join(message.split())
    cut = line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


class TargetUnavailableError(DeployError):
    """The runtime or the device of a target is missing here."""


class BuildError(DeployError):
    """The runtime refused the model, or cannot build it in the wanted precision."""


class EngineError(DeployError):
    """A built engine could not be loaded, or failed while running."""


class FingerprintError(DeployError):
    """Two latencies were to be compared whose fingerprints differ."""
