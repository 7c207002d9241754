"""How a command fails: one line and its fix, an exit code, never a traceback but for a bug."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from pipeline.errors import EXIT_FAILED, DeployError, InconclusiveError, in_words

EXIT_INCONCLUSIVE, EXIT_INTERRUPTED = 3, 130


def guarded(work: Callable[[], None], *, resumes: bool = False) -> None:
    """Expected failures in one line with their fix; anything else is a bug and shows itself.

    `resumes`: whether the command, given again, goes on where it was interrupted.
    """
    try:
        work()
    except DeployError as error:
        click.echo(in_words(error), err=True)
        inconclusive = isinstance(error, InconclusiveError)
        sys.exit(EXIT_INCONCLUSIVE if inconclusive else EXIT_FAILED)
    except KeyboardInterrupt:
        click.echo("interrupted" + "; the same command resumes" * resumes, err=True)
        sys.exit(EXIT_INTERRUPTED)
