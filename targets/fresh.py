"""Fresh Python processes that answer in JSON, a line a message: both ends of `python -m MODULE`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from targets.errors import DeployError, EngineError

PATIENCE_S = 5.0  # for a process to end by itself


class FreshProcess:
    """A new interpreter that serves messages by `module`; used in a `with` block.

    It inherits our affinity mask. `name` is for errors.
    """

    def __init__(self, module: str, *, name: str) -> None:
        self._name = name
        # closed where the block ends
        self._errors = tempfile.TemporaryFile(mode="w+", errors="replace")  # noqa: SIM115
        # -P: a folder named `targets` where the user happens to be must not be imported instead
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._to, self._from = self._child.stdin, self._child.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._child.kill()
        with suppress(BrokenPipeError):
            self._to.close()  # which tells it that no message follows
        try:
            self._child.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._from.close()
        self._errors.close()

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message; `answer` waits for what comes of it."""
        with suppress(BrokenPipeError):  # how it ended is what `answer` says
            self._to.write(json.dumps(message) + "\n")
            self._to.flush()

    def answer(self, limit_s: float) -> Any:
        """The answer to the oldest message without one.

        EngineError if the process fails or takes longer than `limit_s`, which ends it.
        """
        late = threading.Event()

        def end() -> None:
            late.set()
            self._child.kill()

        timer = threading.Timer(limit_s, end)
        timer.daemon = True
        timer.start()
        try:
            line = self._from.readline()
        finally:
            timer.cancel()
        if line.endswith("\n"):
            return json.loads(line)
        if late.is_set():
            raise EngineError(
                f"the {self._name} process did not answer within {limit_s:.0f} s",
                fix="see that nothing else holds the device, and run it again",
            )
        raise self._failure()

    def ask(self, message: Mapping[str, Any], limit_s: float) -> Any:
        """Send a message and wait for its answer."""
        self.tell(message)
        return self.answer(limit_s)

    def _failure(self) -> EngineError:
        status = self._child.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        last = lines[-1] if lines else ""
        if last and status >= 0:
            fix = "mend that and run the same command again"
        else:  # what a library printed before does not say why it was killed
            last = f"{_end_of(status)}{f', after: {last}' if last else ''}"
            fix = "run the same command again; if it fails again, see that memory is not short"
        return EngineError(f"the {self._name} process failed: {last}", fix=fix)


def serve_messages(answer: Callable[[dict[str, Any]], Any]) -> int:
    """Answer each JSON line on stdin by one on stdout; the exit status, 1 after a DeployError.

    Native libraries that print to stdout are heard on stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with answers:
        for line in sys.stdin:
            try:
                found = answer(json.loads(line))
            except DeployError as error:
                sys.stderr.write(" ".join(str(error).split()) + "\n")
                return 1
            answers.write(json.dumps(found) + "\n")
            answers.flush()
    return 0


def _end_of(status: int) -> str:
    """How a process ended that said nothing."""
    return f"exit status {status}" if status >= 0 else f"ended by {signal.Signals(-status).name}"


def _environment() -> dict[str, str]:
    """Ours, with this package to be found wherever the process is started."""
    folder = str(Path(__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = folder if not inherited else folder + os.pathsep + inherited
    return os.environ | {"PYTHONPATH": path}
