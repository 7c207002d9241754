"""Measuring jobs: what a device of a fleet is asked, does and answers. Needs no torch, no Ray."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from calibration.candidates import Slicer
from calibration.measure import Bench, remove_abandoned
from calibration.phases import Phases
from calibration.rows import Row, widths_key
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector
from targets import load_target
from targets.base import Images, Target, TargetOptions
from targets.errors import DeployError
from targets.fingerprint import Fingerprint
from targets.gpu.cuda import contexts_here


@dataclass(frozen=True)
class Setup:
    """What all jobs of one calibration have in common; its digest stands for all of it."""

    skeleton: Skeleton
    target: str
    options: TargetOptions
    fingerprint: Fingerprint  # of the device that the measurements are for
    batches: tuple[Images, ...] = ()  # training images, for targets that take ranges from them
    keep_fp32: frozenset[str] = frozenset()  # nodes that the final engine keeps in fp32, too

    @classmethod
    def of(cls, bench: Bench) -> Setup:
        """The jobs that give what this bench would give on a device like its own."""
        target = bench.target
        return cls(
            bench.slicer.skeleton,
            target.name,
            target.options,
            target.fingerprint(),
            bench.batches,
            bench.keep_fp32,
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex)."""
        parts = {
            "skeleton": self.skeleton.sha256,
            "target": self.target,
            "options": asdict(self.options),
            "fingerprint": self.fingerprint.digest(),
            "batches": [hashlib.sha256(images.tobytes()).hexdigest() for images in self.batches],
            "keep_fp32": sorted(self.keep_fp32),
            "wgates": version("wgates"),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """One width vector to measure; jobs with the same digest have the same answer."""

    setup: str  # digest
    widths: WidthVector
    precision: float
    wgates: str  # version that asks: another one may measure otherwise
    engine: Path | None = None  # build it there, on the asking machine, instead of measuring
    companions: int = 0  # processes of the asker that hold the worker's GPU, idle

    @cached_property
    def digest(self) -> str:
        parts = [self.setup, widths_key(self.widths), self.precision, self.wgates]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What became of a job; one of the first three says it, none where an engine was built."""

    row: Row | None = None
    differences: tuple[str, ...] = ()  # of fingerprints: the device is not the one asked for
    failure: tuple[str, str] | None = None  # message and fix
    seconds: float = 0.0  # that the device was busy
    phases: Mapping[str, float] = field(default_factory=dict)  # the same, by phase
    contexts: int = 0  # that the worker holds on its GPU from now on


class Workplace:
    """What a worker process keeps from job to job: the dense anchor of the last setup.

    `anchor` is its engine where there is one already; else it is built here.
    """

    def __init__(self, anchor: Path | None = None) -> None:
        self.anchor = anchor
        self._kept = ExitStack()
        self._digest = ""
        self._bench: Bench | None = None

    def perform(self, setup: Setup, job: Job) -> Answer:
        """Do one job; an expected failure is an answer, too."""
        started = time.perf_counter()
        try:
            target = load_target(setup.target, setup.options)
            if differences := _differences(setup, job, target):
                return Answer(differences=differences)
            bench = self._bench_of(setup, target)
            bench, row = replace(bench, phases=Phases(), companions=job.companions), None
            if job.engine is None:
                row = bench.row(job.widths, precision=job.precision)
            else:
                bench.build(job.widths, job.engine)
        except DeployError as error:
            return Answer(failure=(error.message, error.fix))
        seconds = time.perf_counter() - started
        spent, held = bench.phases.seconds, contexts_here()
        return Answer(row, seconds=seconds, phases=spent, contexts=held)

    def close(self) -> None:
        """Remove the anchor that was built here."""
        self._kept.close()
        self._digest, self._bench = "", None

    def _bench_of(self, setup: Setup, target: Target) -> Bench:
        if self._bench is None or self._digest != setup.digest:
            self.close()
            remove_abandoned()
            anchor = self._built(setup, target) if self.anchor is None else self.anchor
            slicer = Slicer(setup.skeleton)
            self._bench = Bench(target, slicer, anchor, setup.batches, setup.keep_fp32)
            self._digest = setup.digest
        return self._bench

    def _built(self, setup: Setup, target: Target) -> Path:
        """The anchor's engine; its file must stay, since runtimes read parts of it late."""
        folder = Path(self._kept.enter_context(tempfile.TemporaryDirectory(prefix="wgates-")))
        anchor = folder / f"anchor{target.engine_suffix}"
        graph = setup.skeleton.onnx_bytes
        target.build(graph, anchor, setup.batches, keep_fp32=setup.keep_fp32)
        return anchor


def _differences(setup: Setup, job: Job, target: Target) -> tuple[str, ...]:
    """Why this device's measurements may not stand beside the others; empty if they may."""
    ours = version("wgates")
    if ours != job.wgates:
        return (f"wgates: {job.wgates} != {ours}",)
    target.required(target.is_available())
    return setup.fingerprint.differences(target.fingerprint())
