"""Where a calibration measures and keeps: here or on a fleet, in the run alone or shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from calibration.database import LatencyDatabase
from calibration.fleet import Fleet, measure_on_fleet
from calibration.isolated import IsolatedBench
from calibration.jobs import Setup
from calibration.measure import Bench, measure_all
from calibration.widths import WidthVector
from pipeline.options import CalibrateOptions
from pipeline.run import Context
from pipeline.stages.watchdog import watchdog_s


class Measure(Protocol):
    """Measures what the database lacks; each result is stored as it arrives."""

    def __call__(
        self,
        database: LatencyDatabase,
        wanted: Sequence[WidthVector],
        *,
        precision: float = ...,
        on_done: Callable[[int, int], None] | None = ...,
    ) -> None: ...


@dataclass(frozen=True)
class Devices:
    """How networks are measured, and on how many devices at once."""

    measure: Measure
    count: int


@contextmanager
def devices(context: Context, bench: Bench, anchor: Path | None = None) -> Iterator[Devices]:
    """A process here, or the fleet that --fleet names; its workers are told of at the end.

    `anchor` is the dense engine that the process here loads; devices of a fleet build their own.
    """
    address = context.options(CalibrateOptions).fleet
    if address is None:
        with IsolatedBench(
            Setup.of(bench), bench.phases, limit_s=watchdog_s(context), anchor=anchor
        ) as isolated:
            yield Devices(partial(measure_all, isolated), 1)
        return
    with Fleet(address, Setup.of(bench), limit_s=watchdog_s(context)) as fleet:
        yield Devices(partial(measure_on_fleet, fleet), fleet.devices())
        for worker in fleet.workers.values():
            context.reporter.say(f"calibrate: {worker}")


@contextmanager
def measurements(context: Context, own: Path, skeleton: str) -> Iterator[LatencyDatabase]:
    """The run's database; or the one of --database, whose rows the run's then has, too."""
    shared = context.options(CalibrateOptions).database
    with LatencyDatabase(own) as mine:
        if shared is None:
            yield mine
            return
        with LatencyDatabase(shared) as common:
            common.merge(mine.rows(skeleton))
            yield common
            mine.merge(common.rows(skeleton))
