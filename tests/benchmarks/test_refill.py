"""The benchmark of cold caches: it runs, and its table says what it found."""

from __future__ import annotations

import json

import pytest

from benchmarks import refill
from benchmarks.table_refill import refill as table
from calibration.widths import ChannelGroups

from ..calibration.chain import chain


def test_a_share_of_the_channels_in_multiples_of_8() -> None:
    groups: ChannelGroups = chain((64, 96, 8)).groups
    kept = dict(zip(groups.full().groups, refill._at_share(groups, 0.4).kept, strict=True))
    for group in groups.prunable:
        assert kept[group.name] == {64: 24, 96: 40, 8: 8}[group.channels]


def test_a_case_is_measured_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"LOADS": 1, "TIMES": 2, "ROUNDS": 2, "PROCESSES": 1, "SECONDS": 0.02}
    for name, value in small.items():
        monkeypatch.setattr(refill, name, value)
    case = refill.Case("wgates:resnet20", 16, 0.5, "ort-cpu")
    found = json.loads(json.dumps(refill.measured(case)))
    assert found["bytes"]["pruned"] < found["bytes"]["dense"]
    assert len(found["ms_by_call"]) == refill.CALLS
    assert len(found["rounds"]) == 2
    text = table({"rounds": 2, "cases": {case.name: found}})
    row = text.splitlines()[-1]
    assert row.startswith("| resnet20, 0.5 of its channels, ort-cpu (")
    assert row.count("|") == text.splitlines()[3].count("|")
