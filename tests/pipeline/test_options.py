"""Budgets, and the one rule for what an option may be."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pipeline.budget import Budget
from pipeline.options import (
    CalibrateOptions,
    FinetuneOptions,
    PrepareOptions,
    PruneOptions,
    VerifyOptions,
    complaint,
    option,
)
from pipeline.stages import STAGES


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("4.0ms", 4.0, "ms"),
        ("4ms", 4.0, "ms"),
        (".5ms", 0.5, "ms"),
        ("5.ms", 5.0, "ms"),
        (" 0.6x ", 0.6, "x"),
        ("0.6 x", 0.6, "x"),
        ("0.999x", 0.999, "x"),
        ("1000ms", 1000.0, "ms"),
        ("0.00001ms", 0.00001, "ms"),
    ],
)
def test_budget_reads(text: str, value: float, unit: str) -> None:
    assert Budget.parse(text) == Budget(value, unit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", "0", "4", "abc", "ms", "x", "-1ms", "+1ms", "1e3ms", "nanms", "4.0s", "4ms 5ms", "0.6X"],
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    words = r"is not a budget: write milliseconds \(4\.0ms\), 0\.6x or a count \(1\.2G\)"
    with pytest.raises(ValueError, match=words):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0ms", "must be greater than zero"),
        ("0.0x", "must be greater than zero"),
        ("1x", "must be below 1x"),
        ("2x", "must be below 1x"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Budget.parse(text)


@pytest.mark.parametrize(
    "text", ["4ms", "0.6x", "0.00000001ms", "4.123456789ms", "1000000ms", "100ms", "0.05x"]
)
def test_budget_writes_what_it_reads(text: str) -> None:
    assert str(Budget.parse(text)) == text


def test_relative_budget_is_of_the_dense_engine() -> None:
    assert Budget.parse("0.5x").in_ms(8.0) == 4.0
    assert Budget.parse("0.5ms").in_ms(8.0) == 0.5


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (PrepareOptions, "weights", "weights.pt"),
        (PrepareOptions, "weights", Path("weights.pt")),
        (PrepareOptions, "dense_epochs", 0),
        (PrepareOptions, "dense_lr", 1),  # TOML writes 1 for 1.0
        (PruneOptions, "percentile", "p99"),
        (PruneOptions, "detach_gate_input", True),
        (PruneOptions, "budget", "4.0ms"),
        (PruneOptions, "margin", 0),
        (FinetuneOptions, "distill", 1.0),
    ],
)
def test_good_values_raise_no_complaint(options: type, name: str, value: Any) -> None:
    assert complaint(options, name, value) is None


@pytest.mark.parametrize(
    ("options", "name", "value", "words"),
    [
        (CalibrateOptions, "samples", "many", "it is a whole number"),
        (CalibrateOptions, "samples", 1.5, "it is a whole number"),
        (CalibrateOptions, "samples", True, "it is a whole number"),
        (CalibrateOptions, "samples", [1], "it is a whole number"),
        (CalibrateOptions, "samples", 0, "it is at least 1"),
        (CalibrateOptions, "precision", 0.0, "it is greater than 0"),
        (PruneOptions, "margin", 1, "it is less than 1"),
        (PruneOptions, "margin", float("nan"), "it is a finite number"),
        (PruneOptions, "percentile", "p42", "it is one of p50, p90, p99"),
        (PruneOptions, "percentile", 50, "it is one of p50, p90, p99"),
        (PruneOptions, "budget", "2x", "'2x': a budget relative to dense must be below 1x"),
        (PruneOptions, "budget", 4.0, "it is a text"),
        (PruneOptions, "detach_gate_input", 1, "it is true or false"),
        (FinetuneOptions, "distill", 1.01, "it is at most 1"),
        (PrepareOptions, "weights", 3, "it is a path"),
        (PrepareOptions, "train_batch", 1, "it is at least 2"),
        (VerifyOptions, "block_seconds", float("inf"), "it is a finite number"),
    ],
)
def test_complaints_say_what_is_allowed(options: type, name: str, value: Any, words: str) -> None:
    assert complaint(options, name, value) == words


@pytest.mark.parametrize("stage", STAGES)
def test_every_default_is_allowed_and_every_option_explained(stage: str) -> None:
    options = STAGES[stage].options
    for item in fields(options):
        assert item.default is None or complaint(options, item.name, item.default) is None
        assert len(item.metadata["help"]) > 5
        assert not item.metadata["help"].endswith(".")


def test_no_two_stages_share_an_option() -> None:
    # `pipeline run` has all of them as flags of one command
    names = [item.name for stage in STAGES.values() for item in fields(stage.options)]
    assert len(set(names)) == len(names)


def test_a_misspelt_bound_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        option(1, "a number", minimum=0)


def test_defaults_are_valid_toml() -> None:
    text = "\n".join(
        f"{item.name} = {json.dumps(item.default)}"
        for stage in STAGES.values()
        for item in fields(stage.options)
        if item.default is not None
    )
    assert tomllib.loads(text)["budget"] == PruneOptions().budget
