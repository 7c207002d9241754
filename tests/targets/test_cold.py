"""Cold starts of an engine that costs nothing, in processes that do."""

from __future__ import annotations

from pathlib import Path

import pytest

from targets import load_target
from targets.base import TargetOptions
from targets.cold import ColdStart, cold_starts, summary
from targets.errors import EngineError

from .tiny_onnx import tiny_model

OPTIONS = TargetOptions(batch=2, threads=1)


def test_each_engine_is_started_so_often(tmp_path: Path) -> None:
    target = load_target("fake", OPTIONS)
    engine = target.build(tiny_model(batch=2), tmp_path / "engine.json").engine
    found = cold_starts("fake", OPTIONS, {"one": engine, "other": engine}, starts=2)
    assert {name: len(starts) for name, starts in found.items()} == {"one": 2, "other": 2}
    for start in (*found["one"], *found["other"]):
        assert 0 < start.load_s < start.ready_s
        assert start.first_call_ms > 0
        assert start.warm_call_ms > 0
        assert 1 << 20 < start.before_bytes <= start.loaded_bytes <= start.peak_bytes < 1 << 33


def test_a_damaged_engine_says_why(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_bytes(b"{}")
    with pytest.raises(EngineError, match="no fake engine"):
        cold_starts("fake", OPTIONS, {"one": tmp_path / "engine.json"}, starts=1)


def test_summary_is_of_medians() -> None:
    starts = [ColdStart(s, 0.1, 1.0, 0.5, 10, 20 + int(s), 30) for s in (3.0, 1.0, 2.0)]
    found = summary(starts)
    assert (found["ready_s"], found["ready_range_s"], found["starts"]) == (2.0, [1.0, 3.0], 3)
    assert (found["loaded_bytes"], found["load_s"]) == (22, 0.1)
