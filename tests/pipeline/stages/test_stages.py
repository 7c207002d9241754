"""The line itself: nine stages in order, each fed by earlier ones."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import pipeline.stages
from pipeline.stages import STAGES

NAMES = list(STAGES)


def test_the_line_has_nine_stages_in_this_order() -> None:
    assert " ".join(NAMES) == ("prepare trace calibrate prune finetune export build verify package")


@pytest.mark.parametrize("name", NAMES)
def test_stage_needs_only_earlier_ones(name: str) -> None:
    stage = STAGES[name]
    assert stage.name == name
    assert all(NAMES.index(need) < NAMES.index(name) for need in stage.needs)


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_a_function(name: str) -> None:
    module, _, function = STAGES[name].entry.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def reached_from(name: str) -> set[str]:
    return {name}.union(*(reached_from(need) for need in STAGES[name].needs))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_stage_reads_is_what_makes_it_stale(name: str) -> None:
    """A file of a stage that is not among the needs, direct or not, could change unnoticed."""
    module = STAGES[name].entry.partition(":")[0].rpartition(".")[2]
    text = (Path(pipeline.stages.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    read = re.findall(r"\.(?:read|document|options)\(\s*\"(\w+)\"", text)
    assert set(read) <= reached_from(name)
