"""The measurements of a calibration: start set, rounds where LPNets disagree, stop by rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from calibration.active import Array, Predict, SamplingPlan, StopRule
from calibration.database import LatencyDatabase, LatencyRecord
from calibration.lpnet import FEWEST_RECORDS, FitOptions, LPNet, fit_lpnet, fit_once
from calibration.measure import Bench
from calibration.widths import WidthVector
from pipeline.budget import Budget
from pipeline.errors import MissingInputError
from pipeline.options import CalibrateOptions, PruneOptions
from pipeline.run import Context
from pipeline.stages.measuring import Devices

PART = 8  # networks a device between two looks at the clock


class Campaign:
    """Measures until a rule says that it is enough; `lpnet` is then the one fitted on all."""

    def __init__(
        self,
        context: Context,
        bench: Bench,
        database: LatencyDatabase,
        plan: SamplingPlan,
        tails: Mapping[str, float],
    ) -> None:
        """`tails` are the dense network's percentiles over its median."""
        self.context, self.bench, self.database, self.plan = context, bench, database, plan
        self.tails = tails
        self.options = context.options(CalibrateOptions)
        self.skeleton, self.fingerprint = bench.slicer.skeleton, bench.target.fingerprint()
        self.rule = StopRule(self.options.lpnet_error, self.options.samples, self.options.time)
        self.fitting = FitOptions(prior=prior_of(context, bench))
        self.rounds: list[dict[str, Any]] = []  # the error after each, for the report
        self.lpnet: LPNet | None = None

    def run(self, devices: Devices) -> str:
        """Measure on these devices; the reason to stop, in words."""
        self.devices = devices
        self._measure(self.plan.start, "measure start set")
        records = self.records()
        begin, _ = self.plan.round_at(len(records))
        if begin < len(records) < self.options.samples:  # a run was killed in this round
            self._round(records[:begin])
        while (reason := self._enough()) is None:
            if not self._round(self.records()):
                reason = "every legal width is measured"
                break
        if lost := self.lost():
            self.context.reporter.say(
                f"calibrate: {len(lost)} networks cannot be measured: the first "
                f"{next(iter(lost.values()))}"
            )
        self.context.reporter.say(
            f"calibrate: stopped after {len(self.records())} networks, because {reason}"
        )
        return reason

    def records(self) -> tuple[LatencyRecord, ...]:
        """What is measured of this network under this fingerprint, oldest first."""
        return self.database.records(self.bench.slicer.sha256, self.fingerprint)

    def lost(self) -> dict[WidthVector, str]:
        """What could not be measured, and why."""
        return self.database.lost(self.bench.slicer.sha256, self.fingerprint)

    def fit(self, records: Sequence[LatencyRecord]) -> Predict:
        """A predictor for sampling, whose own error nobody asks."""
        with self.bench.phases.spent_on("fit"):
            return as_function(
                fit_once(
                    records,
                    self.skeleton,
                    self.fingerprint,
                    block=self.bench.target.channel_block,
                    options=self.fitting,
                )
            )

    def aim(self) -> float | None:
        """The median that the run's budget allows, as a share of the dense network's.

        None where it bounds no latency.
        """
        options = self.context.run.options("prune", PruneOptions)
        if options.objective != "latency":
            return None
        # the first record's: the same again when a killed run goes on
        tail_ms = self.records()[0].anchor_ms * self.tails[options.percentile]
        return Budget.parse(options.budget).in_ms(tail_ms) / tail_ms

    def _enough(self) -> str | None:
        """Fit on everything; why to stop, or None."""
        reporter, records = self.context.reporter, self.records()
        with self.bench.phases.spent_on("fit"):
            self.lpnet = fit_lpnet(
                records,
                self.skeleton,
                self.fingerprint,
                block=self.bench.target.channel_block,
                options=self.fitting,
                on_fold=lambda done, total: reporter.progress("fit LPNet", done, total),
            )
        held = self.lpnet.held_out
        assert held is not None
        self.rounds.append(
            {"samples": len(records), "mean": held.mean, "interval_90": held.interval_90}
        )
        reason = self.rule.reason(held.mean, held.interval_90, len(records))
        if reason is None and self._time_is_up(len(records)):
            reason = f"--time {self.options.time:g} minutes are over"
        if reason is None:
            reporter.say(
                f"calibrate: {len(records)} networks, held-out error {held.mean:.1%}, 90 % within "
                f"{held.interval_90:.1%}; next those where LPNets disagree"
            )
        return reason

    def _round(self, known: Sequence[LatencyRecord]) -> bool:
        """Measure what is proposed from the `known` records; whether there was anything."""
        _, end = self.plan.round_at(len(known))
        wanted, lost = end - len(known), self.lost().keys()
        proposed = self.plan.propose(known, self.fit, wanted, aim=self.aim(), avoid=lost)
        self._measure(proposed, f"measure up to {end}")
        return bool(proposed)

    def _measure(self, wanted: Sequence[WidthVector], label: str) -> None:
        """Measure what the database lacks, or as much as there is time for."""
        part = PART * self.devices.count
        for start in range(0, len(wanted), part):
            if self._time_is_up(len(self.records())):
                return
            self.devices.measure(
                self.database,
                wanted[start : start + part],
                precision=self.options.precision,
                on_done=partial(self._tell, label, start, len(wanted)),
            )

    def _tell(self, label: str, start: int, total: int, done: int, _: int) -> None:
        self.context.reporter.progress(label, start + done, total)

    def _time_is_up(self, measured: int) -> bool:
        return measured >= FEWEST_RECORDS and self.rule.time_is_up(self.bench.phases.wall_s())


def prior_of(context: Context, bench: Bench) -> tuple[float, ...]:
    """The weights of the LPNet that --prior names; PredictorError if it is of another network."""
    path = context.options(CalibrateOptions).prior
    if path is None:
        return ()
    if path.name != "lpnet.json" or not path.is_file():
        raise MissingInputError(
            f"--prior {path} is no stored LPNet", fix="give RUN/calibrate/lpnet.json of another run"
        )
    lpnet = LPNet.open(path.parent, bench.slicer.skeleton)
    assert lpnet.fingerprint is not None
    origin = lpnet.fingerprint
    context.reporter.say(
        f"calibrate: begins from an LPNet of {origin.target}, {origin.threads} thread(s), "
        f"{origin.device}"
    )
    return lpnet.as_prior(bench.target.channel_block)


def as_function(lpnet: LPNet) -> Predict:
    """An LPNet on arrays: (N, G) kept channels -> (N,) milliseconds."""

    def predict(kept: Array) -> Array:
        with torch.no_grad():
            found = lpnet.predict_ms(torch.from_numpy(np.asarray(kept, np.float32)))
        return found.double().cpu().numpy()

    return predict
