"""A check, its history, and a certificate beside an older one, as their commands make them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.check.boundary import Boundary
from pipeline.check.history import Entry
from pipeline.check.latency import Limits, Trial, gates_of
from pipeline.check.page import record_of
from pipeline.check.result import CheckResult, Gate, Subject
from tests.pipeline.check.conftest import FINGERPRINT, blocks_of, noisy
from tests.pipeline.test_report import CERTIFICATE

MARGIN, BUDGET_MS = 0.025, 2.2
ACCURACY = Gate(
    "accuracy",
    "pass",
    "top-1 98.06 %, +0.28 points lost (-0.49 to +1.04) on 360 images",
    "at most 1.00 points lost",
    0.0028,
    (-0.0049, 0.0104),
)


def check_result(slowdown: float = 0.06, *, seed: int = 0, **changes: Any) -> CheckResult:
    """Fifteen processes of a candidate that is slower by this share."""
    blocks = blocks_of(noisy(1 + slowdown, 0.006, seed, 15))
    trial = Trial(blocks, Limits(MARGIN, BUDGET_MS), Boundary.of(40))
    values: dict[str, Any] = {
        "at": "2026-03-04T05:06:07+00:00",
        "target": "ort-cpu",
        "fingerprint": FINGERPRINT.to_json(),
        "fingerprint_sha256": FINGERPRINT.digest(),
        "percentile": "p50",
        "confidence": 0.99,
        "processes": 15,
        "seconds": 21.7,
        "candidate": Subject("resnet20-new", "a" * 64, trial.latency("candidate")),
        "baseline": Subject("resnet20-main", "b" * 64, trial.latency("baseline")),
        "gates": (*gates_of(trial, "verdict"), ACCURACY),
        "doubts": ("candidate: the medians of its blocks range over 6%",),
        "notes": ("candidate and baseline on made-up images: 1.2e-07, 0 of 8 labels differ",),
    }
    return CheckResult(**(values | changes))


def check_history(result: CheckResult, steps: tuple[float, ...] = (0.0, 0.02)) -> list[Entry]:
    """Twelve checks at each of these levels, and this one at the end."""
    random = np.random.default_rng(3)
    last = Entry.of(result)
    levels = [level + 0.002 * random.standard_normal() for level in steps for _ in range(12)]
    past = [
        replace(
            last,
            at=f"2026-02-{day + 1:02d}T08:00:00+00:00",
            verdict="inconclusive" if day == 5 else "pass",
            candidate=f"commit-{day:02d}",
            slowdown=float(level),
            accepted="a <b>wider</b> head" if day == 12 else "",
        )
        for day, level in enumerate(levels)
    ]
    return [*past, last]


def check_record() -> dict[str, Any]:
    """What a check's page is made from."""
    result = check_result()
    return record_of(result, check_history(result))


def recertified() -> tuple[dict[str, Any], dict[str, Any]]:
    """A certificate, and that of the same network on a newer runtime."""
    old, new = copy.deepcopy(CERTIFICATE), copy.deepcopy(CERTIFICATE)
    new["fingerprint"] = {**old["fingerprint"], "runtime": "onnxruntime 1.32.0", "threads": 1}
    new["latency_ms"]["engine"] |= {"p50": 0.9312, "ci95": [0.9275, 0.9361], "p99": None}
    new["latency_ms"]["dense"] = {"p50": None, "p90": None, "p99": None, "ci95": None, "samples": 0}
    new["speedup"] = {"median": None, "ci95": None}
    new["accuracy"]["engine"] = {"top1": 0.9778, "n": 360, "ci95": [0.9568, 0.9887]}
    new |= {
        "previous": {"median": 0.951, "ci95": [0.946, 0.957]},
        "verdict": "missed",
        "attribution": [],
        "doubts": ["the dense network was not measured here"],
    }
    return old, new
