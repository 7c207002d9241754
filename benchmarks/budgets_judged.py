"""How fast a plan is, judged apart from the run that made it: built anew, in fresh processes.

Neighbours slow a small network far more than the dense one, so that their ratio is not the
machine's: only the calmer half of the rounds counts.
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
from calibration.pace import calmer_half
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector
from targets import load_target
from targets.base import Target, TargetOptions
from targets.blocks import BlockRun, measure_blocks
from targets.statistics import bootstrap_ci95
from targets.timing import relative_half

DENSE = "dense"
KNOWN, FEWEST = 0.01, 12  # half a ratio's 95 % interval; calmer rounds for it


@dataclass(frozen=True)
class Judge:
    """One network on one target; the most that judging a plan may take."""

    skeleton: Skeleton
    target: Target
    processes: int
    seconds: float  # of a timed block

    @classmethod
    def of(cls, folder: Path, target_name: str, *, processes: int, seconds: float) -> Judge:
        """Of the traced run in `folder`."""
        target = load_target(target_name, TargetOptions(threads=1))
        return cls(Skeleton.open(folder / "trace"), target, processes, seconds)

    def judge(self, plans: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Of each plan, by its kept channels: the median ratio to the dense engine."""
        with tempfile.TemporaryDirectory() as folder:
            blocks = measure_blocks(
                self.target.name,
                self.target.options,
                self._built(plans, Path(folder)),
                processes=self.processes,
                seconds_per_block=self.seconds,
                stop=lambda found: all(_is_known(found, name) for name in plans),
            )
        verdict: dict[str, Any] = {"processes": blocks.processes}
        for name in plans:
            ratios = calm_ratios(blocks, name)
            verdict[name] = {"ratio": float(np.median(ratios)), "ci95": bootstrap_ci95(ratios)}
        medians = {name: blocks.block_medians_ms(name).tolist() for name in (DENSE, *plans)}
        return verdict | {"block_medians_ms": medians, "doubts": list(blocks.doubts())}

    def _built(self, plans: Mapping[str, Sequence[int]], folder: Path) -> dict[str, Path]:
        slicer, full = Slicer(self.skeleton), self.skeleton.groups.full()
        engines = {}
        for name, kept in {DENSE: full.kept, **plans}.items():
            path = folder / f"{name}{self.target.engine_suffix}"
            model = slicer.at_widths(WidthVector(full.groups, tuple(kept)))
            engines[name] = self.target.build(model, path).engine
        return engines


def calm_ratios(blocks: BlockRun, name: str) -> NDArray[np.float64]:
    """(n,) of the engine to the dense one, in the calmer half of the rounds."""
    plan, dense = (blocks.block_medians_ms(each) for each in (name, DENSE))
    ratios: NDArray[np.float64] = (plan / dense)[calmer_half(plan, dense)]
    return ratios


def _is_known(blocks: BlockRun, name: str) -> bool:
    ratios = calm_ratios(blocks, name)
    if len(ratios) < FEWEST:
        return False
    return relative_half(float(np.median(ratios)), bootstrap_ci95(ratios)) <= KNOWN
