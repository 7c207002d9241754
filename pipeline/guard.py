"""How a command fails: one line and its fix, an exit code, never a traceback but for a bug."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from pipeline.errors import DeployError, InconclusiveError

EXIT_FAILED, EXIT_INCONCLUSIVE, EXIT_INTERRUPTED = 1, 3, 130


def guarded(work: Callable[[], None]) -> None:
    """Expected failures in one line with their fix; anything else is a bug and shows itself."""
    try:
        work()
    except DeployError as error:
        tell(error)
        inconclusive = isinstance(error, InconclusiveError)
        sys.exit(EXIT_INCONCLUSIVE if inconclusive else EXIT_FAILED)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command resumes", err=True)
        sys.exit(EXIT_INTERRUPTED)


def tell(error: DeployError) -> None:
    """What happened in one line, and what to do in another."""
    click.echo(f"error: {error.message}", err=True)
    if error.fix:
        click.echo(f"  fix: {error.fix}", err=True)
