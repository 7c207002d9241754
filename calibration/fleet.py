"""Measuring on several devices at once through Ray: one job at a time on each, every job once.

A device offers the resource `target:NAME` and Ray gives it one job at a time. Jobs are pure: one
that was lost with its worker is done again elsewhere, and its result is stored once.
"""

from __future__ import annotations

import faulthandler
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

from calibration.database import LatencyDatabase
from calibration.errors import CandidateLostError, FleetError
from calibration.jobs import Answer, Job, Setup, Workplace
from calibration.measure import MOST_LOST
from calibration.rows import Row
from calibration.widths import WidthVector
from targets.errors import FingerprintError

INSTALL = "pip install 'wgates[fleet]'"
ATTEMPTS = 4  # at a job whose workers die
LOOK_S = 5.0  # without a result before asking whether there still is a device
EMPTY_LOOKS = 6  # without any device before giving up
MAX_ANCHOR_DRIFT = 0.10  # of a device's anchor against its own first
PLACE = Workplace()  # of a worker process


def resource(target: str) -> str:
    """What a device offers and a job takes."""
    return f"target:{target}"


@dataclass(frozen=True)
class WorkerRecord:
    """What one device did."""

    worker: str
    jobs: int
    busy_s: float
    first_anchor_ms: float
    drift: float  # of its anchor against its first, the largest share

    @property
    def drifted(self) -> bool:
        return self.drift > MAX_ANCHOR_DRIFT

    def __str__(self) -> str:
        said = f"worker {self.worker}: {self.jobs} networks in {self.busy_s:.0f} s"
        if self.drifted:
            said += f"; its anchor drifted by {self.drift:.0%}, its later results are doubtful"
        return said


class Fleet:
    """A connection to a Ray cluster, for the jobs of one setup; used in a `with` block.

    `limit_s` is how long a job may take; then its worker process ends.
    """

    def __init__(self, address: str, setup: Setup, *, limit_s: float = 600.0) -> None:
        self.address, self.setup, self.limit_s = address, setup, limit_s
        self.workers: dict[str, WorkerRecord] = {}
        self._ray = ray_module()

    def __enter__(self) -> Self:
        try:
            self._ray.init(
                self.address, log_to_driver=False, logging_level="ERROR", namespace="wgates"
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise FleetError(
                f"cannot join the fleet at {self.address}: {' '.join(str(error).split())[:200]}",
                fix="run this on a machine of the fleet; see: pipeline worker --help",
            ) from error
        try:
            self.check()
            self._shared = self._ray.put(self.setup)
            self._task = self._ray.remote(
                num_cpus=0,
                resources={resource(self.setup.target): 1},
                max_retries=ATTEMPTS - 1,
            )(_work)
        except BaseException:
            self._ray.shutdown()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ray.shutdown()  # ends what is still running for us

    def devices(self) -> int:
        """How many devices of the target the fleet has now."""
        return int(self._ray.cluster_resources().get(resource(self.setup.target), 0))

    def check(self) -> None:
        """FleetError if no device can do the jobs: they would wait for ever."""
        if not self.devices():
            offered = sorted(n for n in self._ray.cluster_resources() if n.startswith("target:"))
            raise FleetError(
                f"no device of the fleet at {self.address} offers {resource(self.setup.target)}; "
                f"there is: {', '.join(offered) or 'none'}",
                fix=f"on a device: pipeline worker --target {self.setup.target} "
                f"--address {self.address}",
            )

    def submit(self, job: Job) -> Any:
        """Hand a job in; the reference that `first_done` takes."""
        return self._task.remote(self._shared, job, self.limit_s)

    def first_done(self, waiting: Sequence[Any]) -> Any:
        """The first of these references that is done; FleetError when all devices are gone."""
        empty = 0
        while True:
            done, _ = self._ray.wait(list(waiting), num_returns=1, timeout=LOOK_S)
            if done:
                return done[0]
            empty = 0 if self.devices() else empty + 1
            if empty >= EMPTY_LOOKS:
                self.check()

    def answer(self, reference: Any, job: Job) -> tuple[str, Answer]:
        """Which device did the job, and what it says.

        CandidateLostError if it took each worker along, or too long on each.
        """
        try:
            worker, digest, answer = self._ray.get(reference)
        except (
            self._ray.exceptions.WorkerCrashedError,
            self._ray.exceptions.OutOfMemoryError,
        ) as error:
            raise CandidateLostError(
                f"ended {ATTEMPTS} worker processes, or took each longer than "
                f"{self.limit_s / 60:g} minutes: {type(error).__name__}"
            ) from error
        except self._ray.exceptions.RayError as error:
            kept = ", ".join(map(str, job.widths.kept))
            raise FleetError(
                f"the fleet lost the job of the widths {kept}: {type(error).__name__}",
                fix="look after the devices, and run the same command again",
            ) from error
        assert digest == job.digest, "Ray answered another job"
        return worker, answer

    def judged(self, worker: str, answer: Answer) -> Row:
        """The row of an answer, doubtful where the device's anchor drifted; else its error."""
        if answer.differences:
            raise FingerprintError(
                f"worker {worker} is another device: {'; '.join(answer.differences)}",
                fix="end that worker, or measure on its kind alone; what was measured is kept",
            )
        if answer.failure is not None:
            raise FleetError(f"worker {worker}: {answer.failure[0]}", fix=answer.failure[1])
        assert answer.row is not None
        anchor_ms = answer.row.anchor_ms
        known = self.workers.get(worker, WorkerRecord(worker, 0, 0.0, anchor_ms, 0.0))
        drift = abs(anchor_ms / known.first_anchor_ms - 1)
        self.workers[worker] = WorkerRecord(
            worker,
            known.jobs + 1,
            known.busy_s + answer.seconds,
            known.first_anchor_ms,
            max(drift, known.drift),
        )
        if drift <= MAX_ANCHOR_DRIFT:
            return answer.row
        doubt = f"worker {worker}: its anchor drifted by {drift:.0%} against its first"
        return replace(answer.row, doubts=(*answer.row.doubts, doubt))


def measure_on_fleet(
    fleet: Fleet,
    database: LatencyDatabase,
    wanted: Sequence[WidthVector],
    *,
    precision: float = 0.01,
    on_done: Callable[[int, int], None] | None = None,
) -> None:
    """What `measure_all` does, on all devices at once; results are stored as they arrive.

    A candidate that ends its workers is marked and never tried again; FleetError after several in
    a row.
    """
    setup = fleet.setup
    which = setup.skeleton.sha256, setup.fingerprint
    lost, in_a_row = database.lost(*which), 0
    jobs = [
        Job(setup.digest, widths, precision, version("wgates"))
        for widths in dict.fromkeys(wanted)
        if widths not in lost and not database.has(*which, widths)
    ]
    waiting = {fleet.submit(job): job for job in jobs}
    total, done = len(wanted), len(wanted) - len(jobs)
    while waiting:
        if on_done is not None and done:
            on_done(done, total)
        reference = fleet.first_done(list(waiting))
        job = waiting.pop(reference)
        try:
            worker, answer = fleet.answer(reference, job)
        except CandidateLostError as error:
            database.mark_lost(*which, job.widths, error.message)
            in_a_row += 1
            if in_a_row == MOST_LOST:
                raise FleetError(
                    f"{in_a_row} candidates in a row were lost; the last {error.message}",
                    fix="look at the devices' memory, or allow more time: --watchdog MINUTES",
                ) from error
        else:
            in_a_row = 0
            database.merge([fleet.judged(worker, answer)])
        done += 1
    if on_done is not None:
        on_done(total, total)


def ray_module() -> Any:
    """Ray, imported when it is needed; FleetError says how to install it."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise FleetError(f"a fleet needs Ray: {error}", fix=INSTALL) from error


def _work(setup: Setup, job: Job, limit_s: float) -> tuple[str, str, Answer]:
    """On the device: its name, the job's digest, the answer; the process ends after the limit."""
    node: str = ray_module().get_runtime_context().get_node_id()
    # a thread of C: the runtime may hang with Python's lock held
    faulthandler.dump_traceback_later(limit_s, exit=True)
    try:
        return node[:8], job.digest, PLACE.perform(setup, job)
    finally:
        faulthandler.cancel_dump_traceback_later()
