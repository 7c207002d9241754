"""A runtime that never comes back: the process ends with one line and its fix.

Nothing can be raised into a call that hangs inside a runtime: an exception waits until it returns.
So another thread ends the process, which costs a run what a kill costs it, the stage's last step.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.errors import EXIT_FAILED, EngineError, in_words

GRACE_S = 5.0


@contextmanager
def ended_if_it_hangs(
    limit_s: float, doing: str, *, fix: str, before_the_end: Callable[[str], None]
) -> Iterator[None]:
    """Ends this process if the block takes longer; `doing` is what it does, for the error.

    `before_the_end` is called with the reason, from another thread. A call that keeps Python's lock
    while it hangs is ended a little later and without words, by a traceback: that takes no Python.
    """
    error = EngineError(
        f"{doing} did not come back within {limit_s / 60:g} minutes",
        fix=fix,
    )

    def end() -> None:
        try:
            sys.stderr.write(in_words(error) + "\n")
            before_the_end(error.message)
        finally:
            os._exit(EXIT_FAILED)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    faulthandler.dump_traceback_later(limit_s + GRACE_S, exit=True, file=2)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()
