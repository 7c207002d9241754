"""How fast a plan is, judged apart from the run that made it: built anew, in fresh processes.

Processes that others disturbed do not count, as in a calibration: neighbours slow a small network
far more than the dense one, so that their ratio is not the machine's. The dense engine's own time
tells which those are, beside its times in the calibration.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.candidates import Slicer
from calibration.database import LatencyDatabase, LatencyRecord
from calibration.pace import calm
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector
from targets import load_target
from targets.base import Target, TargetOptions
from targets.blocks import BlockRun, measure_blocks
from targets.statistics import bootstrap_ci95

DENSE = "dense"
KNOWN, FEWEST = 0.01, 12  # half a ratio's 95 % interval; undisturbed processes for it
ENOUGH = 6  # with fewer undisturbed ones all processes count, and a doubt says so
Ratios = NDArray[np.float64]


@dataclass(frozen=True)
class Judge:
    """One calibrated network on one target; the most that judging a plan may take."""

    skeleton: Skeleton
    target: Target
    calibrated: tuple[LatencyRecord, ...]
    processes: int
    seconds: float  # of a timed block

    @classmethod
    def of(cls, folder: Path, target_name: str, *, processes: int, seconds: float) -> Judge:
        """Of the calibrated run in `folder`."""
        skeleton = Skeleton.open(folder / "trace")
        target = load_target(target_name, TargetOptions(threads=1))
        with LatencyDatabase(folder / "calibrate" / "latency.sqlite") as database:
            records = database.records(skeleton.sha256, target.fingerprint())
        return cls(skeleton, target, records, processes, seconds)

    def judge(self, plans: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Of each plan, by its kept channels: the median ratio to the dense engine."""
        with tempfile.TemporaryDirectory() as folder:
            blocks = measure_blocks(
                self.target.name,
                self.target.options,
                self._built(plans, Path(folder)),
                processes=self.processes,
                seconds_per_block=self.seconds,
                stop=lambda found: all(self._known(found, name) for name in plans),
            )
        doubts = list(blocks.doubts())
        verdict: dict[str, Any] = {"processes": blocks.processes}
        for name in plans:
            ratios, quiet = self.ratios(blocks, name)
            if quiet.sum() < ENOUGH:
                doubts.append(f"{name}: {quiet.sum()} of {len(quiet)} processes were undisturbed")
                quiet[:] = True
            verdict[name] = {
                "ratio": float(np.median(ratios[quiet])),
                "ci95": bootstrap_ci95(ratios[quiet]),
                "all": ratios.tolist(),
                "undisturbed": quiet.tolist(),
            }
        return verdict | {"doubts": doubts}

    def ratios(self, blocks: BlockRun, name: str) -> tuple[Ratios, NDArray[np.bool_]]:
        """(processes,) of the plan to the dense engine, and whether nobody disturbed it."""
        dense = blocks.block_medians_ms(DENSE)
        ratios: Ratios = blocks.block_medians_ms(name) / dense
        widths = self.skeleton.groups.full()
        found = [
            LatencyRecord(widths, ratio, (ratio, ratio), dense_ms, ())
            for ratio, dense_ms in zip(ratios.tolist(), dense.tolist(), strict=True)
        ]
        return ratios, calm([*self.calibrated, *found])[len(self.calibrated) :]

    def _built(self, plans: Mapping[str, Sequence[int]], folder: Path) -> dict[str, Path]:
        slicer, full = Slicer(self.skeleton), self.skeleton.groups.full()
        engines = {}
        for name, kept in {DENSE: full.kept, **plans}.items():
            path = folder / f"{name}{self.target.engine_suffix}"
            model = slicer.at_widths(WidthVector(full.groups, tuple(kept)))
            engines[name] = self.target.build(model, path).engine
        return engines

    def _known(self, blocks: BlockRun, name: str) -> bool:
        ratios, quiet = self.ratios(blocks, name)
        if quiet.sum() < FEWEST:
            return False
        low, high = bootstrap_ci95(ratios[quiet])
        return (high - low) / 2 <= KNOWN * float(np.median(ratios[quiet]))
