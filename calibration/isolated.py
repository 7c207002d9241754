"""Measuring in a process of its own: a candidate that crashes or hangs it costs only itself.

The process has no torch, so it is also quieter than the one that fits and trains.
"""

from __future__ import annotations

import multiprocessing
import signal
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Self

from calibration.errors import CandidateLostError, MeasuringError
from calibration.jobs import Answer, Job, Setup, Workplace
from calibration.phases import Phases
from calibration.rows import Row
from calibration.widths import WidthVector
from targets.fingerprint import Fingerprint
from targets.gpu.cuda import contexts_here

ATTEMPTS = 2  # at a candidate: the first process may have died of something else


class IsolatedBench:
    """Does what a `Bench` does in a child process, which is started again when it is lost.

    Used in a `with` block. `anchor` is the dense network's engine (None: the child builds one);
    `limit_s` is how long a candidate may take.
    """

    def __init__(
        self, setup: Setup, phases: Phases, *, limit_s: float, anchor: Path | None = None
    ) -> None:
        self.setup, self.phases, self.limit_s, self.anchor = setup, phases, limit_s, anchor
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self.contexts = 0  # that the child holds on the GPU

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def skeleton_sha256(self) -> str:
        return self.setup.skeleton.sha256

    @property
    def fingerprint(self) -> Fingerprint:
        return self.setup.fingerprint

    def row(self, widths: WidthVector, *, precision: float = 0.01) -> Row:
        """Measure one width vector; CandidateLostError if it took the process with it, twice."""
        row = self._done(self._job(widths, precision)).row
        assert row is not None
        return row

    def build(self, widths: WidthVector, engine: Path) -> None:
        """Build one width vector's engine there, untimed; CandidateLostError as above."""
        self._done(self._job(widths, 0.0, engine))

    def _job(self, widths: WidthVector, precision: float, engine: Path | None = None) -> Job:
        digest, ours = self.setup.digest, version("wgates")
        return Job(digest, widths, precision, ours, engine, companions=contexts_here())

    def _done(self, job: Job) -> Answer:
        lost = ""
        for _ in range(ATTEMPTS):
            answer = self._asked(job)
            if isinstance(answer, Answer):
                return self._judged(answer)
            lost = answer
        raise CandidateLostError(lost)

    def _asked(self, job: Job) -> Answer | str:
        """The child's answer, or what became of the child."""
        with self.phases.spent_on("start"):
            pipe, process = self._started()
        with self.phases.spent_on("wait") as waiting:
            try:
                pipe.send(job)
                if not pipe.poll(self.limit_s):
                    self._end()
                    return f"took longer than {self.limit_s / 60:g} minutes"
                answer = pipe.recv()
            except (EOFError, BrokenPipeError, ConnectionResetError):  # perhaps long ago, unasked
                return self._became_of(process)
            assert isinstance(answer, Answer)
            waiting.was(answer.phases)
        self.contexts = answer.contexts
        return answer

    def _started(self) -> tuple[Connection, SpawnProcess]:
        if self._pipe is None or self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(theirs, self.setup, self.anchor), name="measuring", daemon=True
            )
            self._process.start()
            theirs.close()  # else its end would never be seen
        return self._pipe, self._process

    def _became_of(self, process: SpawnProcess) -> str:
        """How the child ended, in words; MeasuringError if no candidate can be blamed for it."""
        process.join()
        code = process.exitcode
        assert code is not None
        self._end()
        if code >= 0:
            raise MeasuringError(
                f"the measuring process ended with code {code}; what it said stands above",
                fix="run the same command again: what was measured is kept",
            )
        return f"ended the measuring process by {signal.Signals(-code).name}"

    def _judged(self, answer: Answer) -> Answer:
        if answer.failure or answer.differences:
            said, fix = answer.failure or ("; ".join(answer.differences), "")
            raise MeasuringError(said, fix=fix)
        return answer

    def _end(self) -> None:
        if self._process is not None and self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._process.close()
        self._process = self._pipe = None
        self.contexts = 0


def _serve(pipe: Connection, setup: Setup, anchor: Path | None) -> None:
    """In the child: answer jobs until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    place = Workplace(anchor)
    try:
        while True:
            pipe.send(place.perform(setup, pipe.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        place.close()
