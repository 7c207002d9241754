"""What a low precision may cost: engines built so that top-1 on validation stays within a limit."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BuildError
from pipeline.files import json_in
from pipeline.options import CalibrateOptions
from pipeline.run import Context
from pipeline.serving import SETTLED, target_of
from pipeline.stages.common import build_engine, data_of
from pipeline.stages.watchdog import watch_of
from pipeline.unfused import run_onnx
from targets.base import BuildRecord, Images, Target
from targets.timing import compare

MOST_JUDGED = 2000  # validation images; more would take hours at 80 ms each, and tell little more
RANGE_BATCH = 16  # images a calibration batch


@dataclass(frozen=True)
class Judged:
    """An engine and the top-1 that it loses against the same graph in fp32."""

    record: BuildRecord
    seconds: float  # of the last build
    loss: float  # share of the judged validation images
    n: int  # images judged
    tried: tuple[tuple[int, float], ...]  # nodes kept in fp32, loss: every build, in order

    def to_json(self) -> dict[str, Any]:
        return {
            "kept_fp32": list(self.record.kept_fp32),
            "facts": dict(self.record.facts),
            "top1_loss": self.loss,
            "n": self.n,
            "tried": [{"kept": kept, "top1_loss": loss} for kept, loss in self.tried],
        }


class Referee:
    """Builds engines of a run's target that lose at most --precision-loss on validation."""

    def __init__(self, context: Context, target: Target) -> None:
        self.context, self.target = context, target
        self.options = context.run.options("calibrate", CalibrateOptions)

    def build(self, onnx: bytes, out: Path, keep_fp32: Collection[str] = ()) -> Judged:
        """The engine of a graph, with as few nodes in fp32 as the limit allows."""
        self.target.on_progress = self._tell
        try:
            return self._judged(onnx, out, keep_fp32)
        finally:
            self.target.on_progress = None

    def _tell(self, phase: str, step: int, steps: int) -> bool:
        self.context.reporter.progress(f"build: {phase}", step, steps)
        return True

    def _judged(self, onnx: bytes, out: Path, keep_fp32: Collection[str]) -> Judged:
        if self.target.precision == "fp32":
            started = time.perf_counter()
            record = build_engine(self.context, self.target, onnx, out)
            return Judged(record, time.perf_counter() - started, 0.0, 0, ())
        trials = _Trials(self, onnx, out, tuple(keep_fp32))
        first = trials.tried(0)
        return first if first.loss <= trials.limit else trials.with_fallback()

    @cached_property
    def batches(self) -> tuple[Images, ...]:
        """Training images (n, C, H, W), for ranges and parity; none where fp32 needs none."""
        if self.target.precision == "fp32":
            return ()
        images, _ = data_of(self.context).images("train", self.options.range_images)
        starts = range(0, len(images), RANGE_BATCH)
        return tuple(images[start : start + RANGE_BATCH].numpy() for start in starts)

    @cached_property
    def candidate_batches(self) -> tuple[Images, ...]:
        """Enough to build a candidate for timing: its ranges do not change its latency."""
        return self.batches[:1]

    @cached_property
    def judged(self) -> tuple[Images, NDArray[np.int64]]:
        """Validation images (n, C, H, W), n a multiple of the batch, and their labels (n,)."""
        images, labels = data_of(self.context).images("val", MOST_JUDGED)
        batch = self.target.options.batch
        repeats = -(-batch // len(images))  # fewer images than a batch holds
        whole = repeats * len(images) // batch * batch
        every = images.repeat(repeats, 1, 1, 1)[:whole], labels.repeat(repeats)[:whole]
        return every[0].numpy(), every[1].numpy()


class _Trials:
    """Builds of one graph with more and more nodes in fp32."""

    def __init__(self, referee: Referee, onnx: bytes, out: Path, kept: tuple[str, ...]) -> None:
        self.referee, self.onnx, self.out, self.kept = referee, onnx, out, kept
        self.order: tuple[str, ...] = ()
        self.losses: list[tuple[int, float]] = []
        # shares are of whole images: the last bit of a quotient must not decide
        self.limit = referee.options.precision_loss + 1e-9

    @cached_property
    def reference(self) -> float:
        """Top-1 of the graph in fp32."""
        images, _ = self.referee.judged
        return self._top1(run_onnx(self.onnx, images))

    def tried(self, count: int) -> Judged:
        """Build with the first `count` nodes of the order in fp32, and judge."""
        referee, keep = self.referee, (*self.kept, *self.order[:count])
        target, context = referee.target, referee.context
        started = time.perf_counter()
        record = build_engine(context, target, self.onnx, self.out, referee.batches, keep_fp32=keep)
        seconds = time.perf_counter() - started
        images, labels = referee.judged
        watch = watch_of(context)
        with watch.load(target, record.engine) as engine:
            logits = watch.infer(engine, images)
        loss = self.reference - self._top1(logits)
        self.losses.append((len(record.kept_fp32), loss))
        return Judged(record, seconds, loss, len(labels), tuple(self.losses))

    def with_fallback(self) -> Judged:
        """Double the nodes kept in fp32 until the loss is within the limit, then bisect."""
        order = self.referee.target.fallback_order(self.onnx, self.referee.batches)
        # one less: with all of them in fp32 it would be another target
        self.order = tuple(node for node in order if node not in self.kept)[:-1]
        failed, count = 0, 1
        while (judged := self._within(count)) is None:
            if count >= len(self.order):
                raise self._impossible()
            failed, count = count, min(2 * count, len(self.order))
        while count - failed > 1:
            middle = (failed + count) // 2
            if (better := self._within(middle)) is None:
                failed = middle
            else:
                judged, count = better, middle
        # the last build may have been one that failed
        last = self.tried(count) if self.losses[-1][1] > self.limit else judged
        return replace(last, tried=tuple(self.losses))

    def _within(self, count: int) -> Judged | None:
        if not self.order:
            return None
        judged = self.tried(count)
        return judged if judged.loss <= self.limit else None

    def _impossible(self) -> BuildError:
        kept, loss = self.losses[-1]
        images, _ = self.referee.judged
        return BuildError(
            f"{self.referee.target.name} loses {loss:.2%} of top-1 on {len(images)} validation "
            f"images, with {kept} nodes kept in fp32; {self.limit:.2%} is allowed",
            fix="choose a higher precision, more --range-images, or a larger --precision-loss",
        )

    def _top1(self, logits: NDArray[np.float32]) -> float:
        return float((logits.argmax(1) == self.referee.judged[1]).mean())


@dataclass(frozen=True)
class Settled:
    """What the dense network decided once, so that candidates and engine are built alike."""

    target: Target
    referee: Referee
    dense: Judged

    @property
    def keep_fp32(self) -> frozenset[str]:
        return frozenset(self.dense.record.kept_fp32)


def settle(context: Context, onnx: bytes, out: Path) -> Settled:
    """Build the dense network in every int8 form that may be chosen, and keep the best.

    The choice stands in the stage's SETTLED file, where `target_of` finds it; a run that goes on
    keeps to it, since what it has measured is in that form.
    """
    decided = json_in(context.partial / SETTLED)
    made = [
        _in_form(context, onnx, out.with_stem(f"{out.stem}-{form}") if form else out, form)
        for form in ((decided["quantizer"],) if decided else _forms(context))
    ]
    best, ratios = _best(made)
    compared = [
        {
            "quantizer": item.target.options.quantizer,
            "top1_loss": item.dense.loss,
            "ratio": ratio,
            "ratio_ci95": list(interval),
        }
        for item, (ratio, interval) in zip(made, ratios, strict=True)
    ]
    context.write_json(
        SETTLED,
        {
            "quantizer": best.target.options.quantizer,
            **best.dense.to_json(),
            "forms": decided["forms"] if decided else compared,
        },
    )
    for item in made:
        if item is not best:
            item.dense.record.engine.unlink()
    final = best.dense.record.engine.rename(out)
    record = replace(best.dense.record, engine=final)
    return replace(best, dense=replace(best.dense, record=record))


def _forms(context: Context) -> tuple[str, ...]:
    """The int8 forms to choose from; one without a name where there is nothing to choose."""
    asked = context.run.options("calibrate", CalibrateOptions).quantizer
    if asked != "auto":
        return (asked,)
    return target_of(context.run, quantizer="").quantizers() or ("",)


def _in_form(context: Context, onnx: bytes, out: Path, form: str) -> Settled:
    target = target_of(context.run, quantizer=form)
    referee = Referee(context, target)
    return Settled(target, referee, referee.build(onnx, out))


def _best(
    made: Sequence[Settled],
) -> tuple[Settled, list[tuple[float, tuple[float, float]]]]:
    """The fastest form, the preferred one where the clock cannot tell; and each one's ratio."""
    best = made[0]
    ratios = [(1.0, (1.0, 1.0))]
    for item in made[1:]:
        with (
            item.target.load(item.dense.record.engine) as candidate,
            made[0].target.load(made[0].dense.record.engine) as anchor,
        ):
            found = compare(candidate, anchor)
        ratios.append((found.ratio, found.ratio_ci95))
        if found.ratio_ci95[1] < min(ratio for ratio, _ in ratios[:-1]):
            best = item
    return best, ratios
