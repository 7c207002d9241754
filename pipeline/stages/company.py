"""Several processes on one stage: this one leads and writes, the others only compute.

Each other process runs the same stage on the same run folder with a scratch folder of its own, and
may be told something by the first; they meet wherever a `Trainer` trains or top-1 is counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.errors import TrainingError
from pipeline.options import PrepareOptions
from pipeline.run import Context, Run
from pipeline.training.devices import Place, make_fabric

FABRIC, PLACE = "fabric", "place"  # in a run's memo
READY, TOLD = "ready", "told.json"
PATIENCE_S = 30.0  # for the others to end by themselves


@contextmanager
def company(context: Context, told: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Inside, `fabric_of` is one of --devices processes; with one device nothing changes.

    The others find what they are `told`, which JSON can hold, by `told_by_first`.
    """
    run = context.run
    options = run.options("prepare", PrepareOptions)
    if options.devices == 1 or FABRIC in run.memo:
        yield
        return
    place = run.memo.get(PLACE)
    with _others(context, options.devices, told) if place is None else _joined(run, place):
        yield


def is_beside(run: Run) -> bool:
    """Whether this process takes part in a stage that another one leads."""
    return PLACE in run.memo


def told_by_first(context: Context) -> Any:
    """What the process that leads gave to `company`."""
    return json.loads((context.partial.parent / TOLD).read_text(encoding="utf-8"))


@contextmanager
def _others(context: Context, count: int, told: Mapping[str, Any] | None) -> Iterator[None]:
    place = Place.first(count)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / TOLD).write_text(json.dumps(told), encoding="utf-8")
        others = [
            _Other.start(context, Place(rank, count, place.port), Path(scratch))
            for rank in range(1, count)
        ]
        try:
            for other in others:
                other.await_ready()
            with _joined(context.run, place):
                yield
            for other in others:
                other.process.wait(PATIENCE_S)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            # a process that is gone shows as a broken connection
            raise TrainingError(
                f"{context.stage.name}: the processes that train together lost each other: "
                f"{' '.join(filter(None, (other.last_words() for other in others))) or error}",
                fix="run the same command again: it resumes; or use --devices 1",
            ) from error
        finally:
            for other in others:
                other.process.kill()
                other.process.wait()


@contextmanager
def _joined(run: Run, place: Place) -> Iterator[None]:
    options = run.options("prepare", PrepareOptions)
    run.memo[FABRIC] = make_fabric(options.device, options.train_precision, place)
    try:
        yield
    finally:
        del run.memo[FABRIC]
        dist.destroy_process_group()


@dataclass(frozen=True)
class _Other:
    """A process beside this one, and the file with what it says."""

    rank: int
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, context: Context, place: Place, scratch: Path) -> _Other:
        folder = scratch / str(place.rank)
        folder.mkdir()
        log = scratch / f"{place.rank}.log"
        numbers = [str(n) for n in (place.rank, place.of, place.port)]
        command = [sys.executable, "-m", "pipeline.stages.company", str(context.run.folder)]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, context.stage.name, str(folder), *numbers],
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        return cls(place.rank, process, log)

    def await_ready(self) -> None:
        """Until it has begun; a process that fails before would be waited for in vain."""
        while not (self.log.parent / str(self.rank) / READY).exists():
            if self.process.poll() is not None:
                raise RuntimeError
            time.sleep(0.05)

    def last_words(self) -> str:
        """Its last line, if it failed."""
        try:
            self.process.wait(PATIENCE_S)  # its connections close before it has ended
        except subprocess.TimeoutExpired:
            return ""
        if self.process.returncode == 0:
            return ""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"process {self.rank} ended with {self.process.returncode}: {''.join(lines[-1:])}"


class _Silent:
    """A reporter for those who do not lead."""

    def progress(self, label: str, done: int, total: int, note: str = "") -> None: ...

    def say(self, text: str) -> None: ...


def main(folder: str, stage: str, scratch: str, *place: str) -> None:
    """Take part in a stage that another process leads."""
    from pipeline.stages import STAGES

    run = Run(Path(folder), STAGES)
    run.resolve({})
    rank, of, port = (int(number) for number in place)
    run.memo[PLACE] = Place(rank, of, port)
    (Path(scratch) / READY).touch()
    STAGES[stage].execute(Context(run, STAGES[stage], Path(scratch), _Silent()))


if __name__ == "__main__":
    main(*sys.argv[1:])
