"""What this runner can tell at all: A/A runs, kept by fingerprint and percentile.

The same engine stands on both sides, so every ratio is noise. Drawn again and again with either
sign, since either side might have been called the candidate, the ratios say how narrow an interval
becomes before the processes run out: a margin under that could never be passed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.check.boundary import Boundary
from pipeline.errors import DeployError
from pipeline.files import disk_faults_told, write_atomically

POWER = 0.95  # of checks that shall reach a verdict
DRAWS = 2000
SEED = 0
MARGIN = 0.025  # where neither the user nor the noise says otherwise
_NORMAL = 1.4826  # standard deviations in a median absolute deviation


@dataclass(frozen=True)
class NoiseFloor:
    """The noise of one set-up, measured by an engine against itself."""

    at: str  # ISO 8601, UTC
    engine: str
    percentile: str  # that was judged: "p50", "p90", "p99"
    log_ratios: tuple[float, ...]  # of each process
    spread: float  # robust standard deviation of the log ratios
    smallest_margin: float  # share; narrower margins end inconclusive too often
    seconds_per_process: float

    @classmethod
    def of(cls, log_ratios: ArrayLike, boundary: Boundary, **told: Any) -> Self:
        """From the A/A log ratios (n,) of n processes, at most as many as `boundary` allows."""
        logs = np.asarray(log_ratios, dtype=np.float64)
        return cls(
            log_ratios=tuple(float(value) for value in logs),
            spread=float(_NORMAL * np.median(np.abs(logs - np.median(logs)))),
            smallest_margin=math.expm1(_resolution(logs, boundary)),
            **told,
        )

    def detectable(self, margin: float) -> float:
        """The smallest slowdown that is called a regression with a chance of 95 %, as a share."""
        return (1 + margin) * (1 + self.smallest_margin) - 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> Self:
        """The inverse of `to_json`; ValueError for anything else."""
        names = {item.name for item in fields(cls)}
        if not isinstance(record, dict) or set(record) != names:
            raise ValueError("an entry lacks fields, or has unknown ones")
        numbers = (record["spread"], record["smallest_margin"], record["seconds_per_process"])
        if not isinstance(record["log_ratios"], list) or not all(
            type(value) in (int, float) and math.isfinite(value)
            for value in (*record["log_ratios"], *numbers)
        ):
            raise ValueError("an entry holds what is no number")
        if not all(isinstance(record[name], str) for name in ("at", "engine", "percentile")):
            raise ValueError("an entry holds what is no text")
        return cls(**(record | {"log_ratios": tuple(record["log_ratios"])}))


def _resolution(logs: NDArray[np.float64], boundary: Boundary) -> float:
    """The upper end, on the log scale, that 95 % of such checks come under before they end."""
    generator = np.random.default_rng(SEED)
    shape = (DRAWS, len(logs))
    drawn = generator.choice(logs, shape) * generator.choice([-1.0, 1.0], shape)
    best = np.full(DRAWS, np.inf)
    for n, needed in enumerate(boundary.needed[: len(logs)], 1):
        if needed is not None:
            ends = np.partition(drawn[:, :n], needed - 1, axis=1)[:, needed - 1]
            best = np.minimum(best, ends)
    return float(np.quantile(best, POWER))


# --- the file -----------------------------------------------------------------------------------


def noise_file() -> Path:
    """Where noise floors lie unless the user says otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "wgates" / "noise.json"


def floor_key(fingerprint_sha256: str, percentile: int) -> str:
    """Of a noise floor: a tail is noisier than a median of the same set-up."""
    return f"{fingerprint_sha256} p{percentile}"


def read_floors(path: Path) -> dict[str, NoiseFloor]:
    """`floor_key` -> noise floor; empty if there is no file."""
    if not path.exists():
        return {}
    try:
        with disk_faults_told(f"cannot read {path.name}", path):
            document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
        return {key: NoiseFloor.from_json(entry) for key, entry in document.items()}
    except (ValueError, RecursionError) as error:
        raise DeployError(
            f"{path} is damaged: {error}", fix="remove it, then run: pipeline check --calibrate"
        ) from error


def store_floor(path: Path, key: str, floor: NoiseFloor) -> None:
    """Keep a noise floor, in place of an older one of the same key."""
    floors: Mapping[str, NoiseFloor] = read_floors(path) | {key: floor}
    with disk_faults_told(f"cannot write {path.name}", path):
        path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({key: item.to_json() for key, item in floors.items()}, indent=1)
    write_atomically(path, text.encode())


def settled_margin(asked: float | None, floor: NoiseFloor | None) -> tuple[float, str]:
    """The margin to use, and a note about it.

    DeployError if the user asks for less than this runner can tell; a default is raised instead.
    """
    if floor is None:
        told = (
            "this set-up is not calibrated, so its noise is not known: pipeline check --calibrate"
        )
        return (MARGIN if asked is None else asked), told
    least = floor.smallest_margin
    if asked is None:
        if least <= MARGIN:
            return MARGIN, ""
        return least, (
            f"the margin was raised from {MARGIN:.1%} to {least:.1%}: "
            "the noise of this runner hides anything smaller"
        )
    if asked < least:
        raise DeployError(
            f"a margin of {asked:.2%} is below what this runner can tell, {least:.2%}",
            fix=f"ask for --margin {math.ceil(1000 * least) / 10:g}%, or calibrate again on a "
            "quieter machine, or with longer --block-seconds: pipeline check --calibrate",
        )
    return asked, ""
