"""The measurements of a calibration, on a target whose latency is a known law."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.active import START, SamplingPlan
from calibration.candidates import Slicer
from calibration.cliffs import probes, step_maps
from calibration.database import LatencyDatabase
from calibration.errors import CandidateLostError
from calibration.lpnet import LPNet
from calibration.measure import Bench, measure_all
from calibration.widths import WidthVector
from pipeline.errors import MissingInputError
from pipeline.run import Context, Run
from pipeline.stages import STAGES
from pipeline.stages.campaign import Campaign, as_function
from pipeline.stages.measuring import Devices
from targets.base import TargetOptions
from targets.fake import FakeTarget
from targets.loads import Loads
from tests.calibration.chain import BATCH, chain

SKELETON = chain((32, 64, 64))
NEVER = 1e-9  # no held-out error is this small


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def progress(self, label: str, done: int, total: int, note: str = "") -> None: ...

    def say(self, text: str) -> None:
        self.lines.append(text)


class MortalBench(Bench):
    """Is killed before the measurement of the given number."""

    deaths: list[int]

    def compare(self, widths: WidthVector, **given: Any) -> Loads:
        if self.deaths and self.deaths[0] == 0:
            self.deaths.clear()
            raise KeyboardInterrupt
        self.deaths[:] = [left - 1 for left in self.deaths]
        return super().compare(widths, **given)


@contextmanager
def campaign(
    folder: Path, *, dies_after: int | None = None, probed: int = 0, **options: Any
) -> Iterator[tuple[Campaign, Told]]:
    folder.mkdir(exist_ok=True)
    run, told = Run(folder, STAGES), Told()
    run.resolve({"lpnet_error": NEVER, "cliffs": False, **options})
    context = Context(run, STAGES["calibrate"], folder, told)
    target = FakeTarget(TargetOptions(batch=BATCH), noise=0.003)
    anchor = target.build(SKELETON.onnx_bytes, folder / "anchor.json").engine
    most = options["samples"]
    plan = SamplingPlan(SKELETON.groups, 8, most, 0, probes(SKELETON, probed))
    with LatencyDatabase(folder / "latency.sqlite") as database:
        bench = MortalBench(target, Slicer(SKELETON), anchor)
        object.__setattr__(bench, "deaths", [] if dies_after is None else [dies_after])
        yield Campaign(context, bench, database, plan, {"p50": 1.0, "p99": 1.5}), told


def finish(made: Campaign) -> str:
    """In this process: the noise of the fake target is that of its object."""
    return made.run(Devices(partial(measure_all, made.bench), 1))


def measured(made: Campaign) -> list[WidthVector]:
    return [record.widths for record in made.records()]


def test_measures_the_start_set_and_rounds_up_to_samples(tmp_path: Path) -> None:
    with campaign(tmp_path, samples=100) as (made, told):
        assert finish(made) == "--samples 100 are measured"
        assert [item["samples"] for item in made.rounds] == [60, 90, 100]
        assert len(set(measured(made))) == 100
        assert made.lpnet is not None
        kept = np.array([w.kept for w in measured(made)], float)
        error = np.abs(
            as_function(made.lpnet)(kept)
            / [record.ratio * record.anchor_ms for record in made.records()]
            - 1
        )
        assert error.mean() < 0.05
    assert [line for line in told.lines if "stopped after 100 networks" in line]
    assert [line for line in told.lines if line.startswith("calibrate: 60 networks, held-out")]


def test_stops_by_error(tmp_path: Path) -> None:
    with campaign(tmp_path, samples=200, lpnet_error=0.2) as (made, told):
        assert "--lpnet-error 20.0%" in finish(made)
        assert len(measured(made)) == START
    assert "because the held-out error is within" in told.lines[-1]


def test_stops_by_time_but_not_before_an_lpnet_can_be_fitted(tmp_path: Path) -> None:
    with campaign(tmp_path, samples=200, time=1e-6) as (made, _):
        assert finish(made) == "--time 1e-06 minutes are over"
        assert 20 <= len(measured(made)) < 30


@pytest.mark.parametrize("dies_after", [7, 66])  # in the start set, in the first round
def test_a_killed_run_goes_on_with_the_same_networks(tmp_path: Path, dies_after: int) -> None:
    with campaign(tmp_path / "whole", samples=80) as (made, _):
        finish(made)
        expected = measured(made)
    with campaign(tmp_path / "killed", samples=80, dies_after=dies_after) as (made, _):
        with pytest.raises(KeyboardInterrupt):
            finish(made)
        assert measured(made)[:START] == expected[: min(dies_after, START)]
        assert len(measured(made)) == dies_after
    with campaign(tmp_path / "killed", samples=80) as (made, _):
        before = measured(made)
        finish(made)
        assert measured(made)[: len(before)] == before
        assert len(measured(made)) == 80
        known = made.records()[:START]
        again = made.plan.propose(known, made.fit, 20, aim=made.aim())
        assert set(measured(made)[START:]) == set(again)


def test_a_second_run_measures_nothing(tmp_path: Path) -> None:
    for death in (None, 0):
        with campaign(tmp_path, samples=70, dies_after=death) as (made, _):
            finish(made)
            assert len(measured(made)) == 70


def test_the_fake_targets_blocks_are_found_as_cliffs(tmp_path: Path) -> None:
    with campaign(tmp_path, samples=90, probed=22) as (made, _):
        finish(made)
        found = step_maps(SKELETON.groups, made.records())
    assert {cliff.group: cliff.step for cliff in found} == {"conv0": 8, "conv1": 8, "conv2": 8}


def test_a_budget_that_bounds_no_latency_draws_no_samples(tmp_path: Path) -> None:
    with campaign(tmp_path, samples=24, budget="0.6x") as (made, _):
        finish(made)
        assert made.aim() == pytest.approx(0.6)
    with campaign(tmp_path, samples=24, objective="flops") as (made, _):
        assert made.aim() is None


def test_where_the_time_goes_is_known(tmp_path: Path) -> None:
    with campaign(tmp_path, samples=24) as (made, _):
        finish(made)
        seconds = made.bench.phases.to_json()["seconds"]
    assert {"slice", "build", "load", "time", "store", "fit"} <= set(seconds)
    assert all(spent > 0 for spent in seconds.values())


def test_another_devices_lpnet_is_begun_from(tmp_path: Path) -> None:
    with campaign(tmp_path / "one", samples=80) as (made, _):
        finish(made)
        assert made.lpnet is not None
        made.lpnet.save(tmp_path / "one")
    prior = tmp_path / "one" / "lpnet.json"
    with campaign(tmp_path / "two", samples=24, prior=prior) as (made, told):
        finish(made)
        assert made.lpnet is not None
        assert made.lpnet.options.prior == tuple(
            LPNet.open(prior.parent, SKELETON).net.get_buffer("weights").tolist()
        )
    assert [line for line in told.lines if line.startswith("calibrate: begins from an LPNet of")]


@pytest.mark.parametrize("name", ["lpnet.json", "other.json"])
def test_a_prior_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "other.json").write_text("{}")
    with (
        pytest.raises(MissingInputError, match="no stored LPNet"),
        campaign(tmp_path / "run", samples=24, prior=tmp_path / name),
    ):
        pass


class LosingBench(Bench):
    """Loses every network whose first group is at half."""

    def compare(self, widths: WidthVector, **given: Any) -> Loads:
        if widths.kept[0] == 16:
            raise CandidateLostError("ended the measuring process by SIGSEGV")
        return super().compare(widths, **given)


def test_lost_networks_are_told_and_not_proposed_again(tmp_path: Path) -> None:
    with campaign(tmp_path, samples=80) as (made, told):
        made.bench.__class__ = LosingBench
        finish(made)
        lost = set(made.lost())
        assert lost
        assert {widths.kept[0] for widths in lost} == {16}
        assert not lost & set(measured(made))
        assert len(measured(made)) == 80
    assert [line for line in told.lines if f"{len(lost)} networks cannot be measured" in line]
