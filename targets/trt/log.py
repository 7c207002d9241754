"""What TensorRT says while it works, kept for error messages; and its progress, to be stopped."""

from __future__ import annotations

import functools
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from targets.base import Progress
from targets.errors import BuildError

KEPT_LINES = 200
# TensorRT ends its messages with where in its own sources they were written
_ORIGIN = re.compile(r"\s*\(?In \w+ at /?\S+?:\d+")
_CALLER = re.compile(r"^I\w+::\w+: ")

_one_at_a_time = threading.Lock()


@functools.cache
def process_log(trt: Any) -> Any:
    """The one logger of the module `trt`: it keeps the first of a process and ignores later ones.

    Has `errors`, the newest error lines.
    """

    class ErrorLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=KEPT_LINES)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(msg)

    return ErrorLog()


@contextmanager
def collected_errors(trt: Any) -> Iterator[Callable[[], str]]:
    """Within the block, what it yields returns the errors logged since, in one line.

    One block at a time in a process: the log cannot tell who caused a line.
    """
    log = process_log(trt)
    with _one_at_a_time:
        log.errors.clear()
        yield lambda: "; ".join(map(readable, log.errors)) or "it gave no reason"


def readable(message: str) -> str:
    """A message of TensorRT in one line, without the places in its sources."""
    line = " ".join(message.split())
    trimmed = _CALLER.sub("", _ORIGIN.sub("", line)).strip()
    surplus = trimmed.count(")") - trimmed.count("(")
    return trimmed[:-1] if surplus > 0 and trimmed.endswith(")") else trimmed


class Watch:
    """Tells `on_progress` of each step of a build; `stopped_by` says why it is to stop.

    No exception may travel through TensorRT's C++ frames. What the callback raises stops the
    build and is kept, for whoever started the build to raise again.
    """

    def __init__(self, on_progress: Progress | None) -> None:
        self.stopped_by: BaseException | None = None
        self._on_progress = on_progress
        self._steps: dict[str, int] = {}

    def stop(self, reason: BaseException) -> None:
        """Stop the build at its next step."""
        self.stopped_by = self.stopped_by or reason

    def start_phase(self, phase: str, steps: int) -> None:
        """Note how many steps the phase will have."""
        self._steps[phase] = steps

    def step(self, phase: str, step: int) -> bool:
        """Whether to go on after this step, counted from 0."""
        if self.stopped_by is None and self._on_progress is not None:
            try:
                if not self._on_progress(phase, step + 1, self._steps.get(phase, 0)):
                    self.stop(BuildError("the build was cancelled", fix="start it again"))
            except BaseException as error:
                self.stop(error)
        return self.stopped_by is None


def progress_monitor(trt: Any, watch: Watch) -> Any:
    """TensorRT's monitor, which asks `watch`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watch.start_phase(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            """Phases need no end here."""

    return Monitor()


@contextmanager
def interruptible(watch: Watch) -> Iterator[None]:
    """Let Ctrl-C stop a build at its next step; it would raise inside TensorRT's frames."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # the signal reaches another thread, or is somebody else's
        return
    signal.signal(signal.SIGINT, lambda number, frame: watch.stop(KeyboardInterrupt()))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
