"""In how many rounds a network that must be known well is timed, and what they come to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration import several
from calibration.errors import CandidateLostError
from calibration.isolated import IsolatedBench
from calibration.jobs import Setup
from calibration.phases import Phases
from calibration.rows import Row
from calibration.several import ANCHOR, FEWEST, MOST, PLAN, Range, SeveralProcesses, plan_ratio
from calibration.widths import WidthVector
from targets.base import TargetOptions
from targets.blocks import BlockRun
from targets.errors import EngineError
from targets.fake import FakeTarget
from targets.samples import Samples

from .chain import BATCH, chain
from .test_measure import known_ns

SKELETON = chain((32, 48))
OPTIONS = TargetOptions(batch=BATCH)
TARGET = FakeTarget(OPTIONS)
WIDTHS = WidthVector(SKELETON.groups.names, (16, 24))
ANCHOR_MS = 2.0

Pairs = Iterable[tuple[float, float]]  # a round's medians in ms: plan, anchor


@pytest.fixture
def bench() -> Iterator[IsolatedBench]:
    setup = Setup(SKELETON, "fake", OPTIONS, TARGET.fingerprint())
    with IsolatedBench(setup, Phases(), limit_s=30) as made:
        yield made


@pytest.fixture
def anchor(tmp_path: Path) -> Path:
    return TARGET.build(SKELETON.onnx_bytes, tmp_path / "anchor.json").engine


def block(ms: float) -> Samples:
    wall_ns = np.full(9, round(1e6 * ms), np.int64)
    return Samples(wall_ns, wall_ns, np.zeros(9, np.int64))


def blocks_of(pairs: Pairs) -> BlockRun:
    plan, anchor = zip(*pairs, strict=True)
    both = {PLAN: tuple(map(block, plan)), ANCHOR: tuple(map(block, anchor))}
    return BlockRun(TARGET.fingerprint(), both)


def at(*ratios: float) -> list[tuple[float, float]]:
    return [(ratio * ANCHOR_MS, ANCHOR_MS) for ratio in ratios]


def lucky(deviation: float) -> list[tuple[float, float]]:
    """As many rounds as there can be, around 0.5; each network has its own luck in each."""
    plan, anchor = np.exp(deviation * np.random.default_rng(0).standard_normal((2, MOST)))
    return [(0.5 * ANCHOR_MS * p, ANCHOR_MS * a) for p, a in zip(plan, anchor, strict=True)]


def scripted(pairs: Pairs) -> Callable[..., BlockRun]:
    """Stands in for `measure_blocks`: rounds that come to these times."""

    def measure(
        target: str, options: TargetOptions, engines: Mapping[str, Path], **named: Any
    ) -> BlockRun:
        assert (target, options, engines.keys()) == ("fake", OPTIONS, {PLAN, ANCHOR})
        assert all(path.exists() for path in engines.values())
        done: list[tuple[float, float]] = []
        for pair in itertools.islice(pairs, named["processes"]):
            done.append(pair)
            if named["stop"](blocks_of(done)):
                break
        return blocks_of(done)

    return measure


@pytest.fixture
def timed(
    bench: IsolatedBench, anchor: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Row, int]]:
    """The row that such rounds lead to, and how many there were."""

    def call(pairs: Pairs, between: Range | None = None) -> tuple[Row, int]:
        monkeypatch.setattr(several, "measure_blocks", scripted(pairs))
        told: list[tuple[int, int]] = []
        measurer = SeveralProcesses(bench, anchor, lambda *done: told.append(done), between)
        row = measurer.row(WIDTHS, precision=0.01)
        assert told == [(done, MOST) for done in range(1, len(told) + 1)]
        return row, len(told)

    return call


def test_rounds_that_agree_are_soon_enough(timed: Callable[..., tuple[Row, int]]) -> None:
    row, rounds = timed(at(*[0.50, 0.501] * MOST))
    assert rounds == FEWEST
    assert row.ratio == pytest.approx(0.5005)
    assert row.ratio_ci95 == pytest.approx((0.50, 0.501), rel=1e-3)
    assert (row.skeleton, row.widths) == (SKELETON.sha256, WIDTHS)
    assert row.fingerprint == TARGET.fingerprint()


def test_the_evidence_of_all_rounds_is_kept(timed: Callable[..., tuple[Row, int]]) -> None:
    row, rounds = timed(at(*[0.50, 0.501] * MOST))
    assert len(row.candidate) == len(row.anchor) == 9 * rounds
    assert row.anchor_ms == ANCHOR_MS
    assert row.candidate.median_ms() == pytest.approx(0.5005 * ANCHOR_MS, rel=2e-3)


def test_rounds_with_unlike_luck_call_for_more(timed: Callable[..., tuple[Row, int]]) -> None:
    row, rounds = timed(at(*(0.49, 0.51) * 3, *[0.5] * MOST))
    assert FEWEST < rounds < MOST
    low, high = row.ratio_ci95
    assert (high - low) / 2 <= 0.01 * row.ratio
    assert low <= 0.5 <= high


@pytest.mark.parametrize(
    ("between", "fewer"),
    [
        (None, False),
        *(((0.485, 0.6), False), ((0.4, 0.49), False)),
        *(((0.6, 0.7), True), ((0.3, 0.4), True), ((0.4, 0.6), True)),
    ],
)
def test_what_surely_is_looked_for_or_surely_not_need_not_be_known_well(
    timed: Callable[..., tuple[Row, int]], between: Range | None, fewer: bool
) -> None:
    _, rounds = timed(lucky(0.04), between)
    assert rounds == (2 * FEWEST if fewer else MOST)


def test_no_network_is_timed_for_ever(timed: Callable[..., tuple[Row, int]]) -> None:
    row, rounds = timed(lucky(0.2))
    assert rounds == MOST
    assert row.ratio_ci95[0] < 0.5 < row.ratio_ci95[1]


def test_rounds_that_neighbours_disturbed_do_not_count() -> None:
    generator = np.random.default_rng(0)
    calm = [(0.5 * ANCHOR_MS * luck, ANCHOR_MS) for luck in generator.uniform(0.99, 1.01, FEWEST)]
    slowed = [(1.5 * plan, 1.15 * anchor) for plan, anchor in calm]
    ratio, (low, high) = plan_ratio(blocks_of([*calm, *slowed]))
    assert ratio == pytest.approx(0.5, rel=0.01)
    assert (high - low) / ratio < 0.03
    few, _ = plan_ratio(blocks_of([*calm[: FEWEST // 2], *slowed[: FEWEST // 2]]))
    assert few > 0.52, "too few to choose between"


def test_a_plan_is_timed_in_processes_of_its_own(bench: IsolatedBench, anchor: Path) -> None:
    measurer = SeveralProcesses(bench, anchor)
    row = measurer.row(WIDTHS)
    expected = known_ns(SKELETON, (16, 24)) / known_ns(SKELETON, (32, 48))
    assert row.ratio == pytest.approx(expected, rel=1e-3)
    assert row.fingerprint == measurer.fingerprint == TARGET.fingerprint()
    assert {"build", "time"} <= measurer.phases.seconds.keys()


@pytest.mark.parametrize("failures", [1, 2])
def test_a_plan_whose_process_fails_twice_is_lost(
    bench: IsolatedBench, anchor: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    left, measure = iter(range(failures)), scripted(at(*[0.5] * MOST))

    def failing(*args: Any, **named: Any) -> BlockRun:
        for _ in left:
            raise EngineError("the timing process failed: killed", fix="again")
        return measure(*args, **named)

    monkeypatch.setattr(several, "measure_blocks", failing)
    measurer = SeveralProcesses(bench, anchor)
    if failures == 1:
        assert measurer.row(WIDTHS).ratio == 0.5
        return
    with pytest.raises(CandidateLostError, match="could not be timed: the timing process failed"):
        measurer.row(WIDTHS)


def on_a_gpu(run: BlockRun) -> BlockRun:
    """As if one other process had held it all the time."""
    seen = {
        name: tuple(replace(block, gpu_foreign=np.ones(len(block), np.int64)) for block in blocks)
        for name, blocks in run.blocks.items()
    }
    return BlockRun(run.fingerprint, seen)


def test_the_process_that_built_the_plan_is_not_foreign_on_its_gpu(
    bench: IsolatedBench, anchor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, measure = bench.build, scripted(at(*[0.5] * MOST))
    monkeypatch.setattr(
        several, "measure_blocks", lambda *a, **named: on_a_gpu(measure(*a, **named))
    )
    assert any("foreign" in doubt for doubt in SeveralProcesses(bench, anchor).row(WIDTHS).doubts)

    def holding(widths: WidthVector, engine: Path) -> None:
        build(widths, engine)
        bench.contexts = 1

    monkeypatch.setattr(bench, "build", holding)
    assert not any(
        "foreign" in doubt for doubt in SeveralProcesses(bench, anchor).row(WIDTHS).doubts
    )
