"""Cold start, memory and the spread of builds, on a target whose latency is a formula."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import EngineError, MissingInputError
from pipeline.run import Context, Run
from pipeline.stages import STAGES, footprint
from targets import load_target
from targets.base import TargetOptions
from targets.blocks import BlockRun
from tests.targets.tiny_onnx import tiny_model

from .test_counterfactual import Silent, steady

BUILDS: list[dict[str, Any]] = [
    {"seconds": 1.0, "bytes": 10, "sha256": "a" * 64, "file": None},
    {"seconds": 2.0, "bytes": 11, "sha256": "b" * 64, "file": "second.json"},
    {"seconds": 3.0, "bytes": 10, "sha256": "a" * 64},
]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A run of the fake target with an engine, a wider dense one, and three builds."""
    run = Run(tmp_path / "run", STAGES)
    run.resolve({"target": "fake", "threads": 1, "batch": 2, "cold_starts": 1})
    built = run.folder / "build"
    built.mkdir()
    target = load_target("fake", TargetOptions(batch=2, threads=1))
    for name, width in (("engine", 4), ("dense", 32), ("second", 4)):
        target.build(tiny_model(width=width), built / f"{name}.json")
    names = {"engine": "engine.json", "dense": "dense.json", "builds": BUILDS}
    (built / "build.json").write_text(json.dumps(names))
    return Context(run, STAGES["verify"], tmp_path, Silent())


# cold start -------------------------------------------------------------------------------


def test_cold_starts_are_measured_in_processes_of_their_own(context: Context) -> None:
    found = footprint.footprint(context)
    assert found is not None
    assert set(found) == {"engine", "dense"}
    for one in found.values():
        assert one["starts"] == 1
        assert 0 < one["load_s"] < one["ready_s"]
        assert one["ready_range_s"] == [one["ready_s"]] * 2
        assert 0 < one["before_bytes"] <= one["loaded_bytes"] <= one["peak_bytes"]
    # the fake target's latency is known: the wider engine is the slower one
    assert found["dense"]["warm_call_ms"] > found["engine"]["warm_call_ms"] > 0


def test_cold_starts_can_be_left_out(context: Context) -> None:
    context.run.resolve({"cold_starts": 0})
    assert footprint.footprint(context) is None


def test_an_engine_that_does_not_load_is_told(context: Context) -> None:
    (context.run.folder / "build" / "engine.json").write_text("{")
    with pytest.raises(EngineError):
        footprint.footprint(context)


def test_an_engine_that_is_gone_names_the_stage(context: Context) -> None:
    (context.run.folder / "build" / "dense.json").unlink()
    with pytest.raises(MissingInputError, match=r"has no build/dense\.json yet") as caught:
        footprint.footprint(context)
    assert "pipeline build" in caught.value.fix


# builds -----------------------------------------------------------------------------------


def test_builds_that_differ_are_timed_beside_the_shipped_one(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Mapping[str, Path]] = []

    def measure_blocks(
        target: str, options: TargetOptions, engines: Mapping[str, Path], **_: Any
    ) -> BlockRun:
        asked.append(engines)
        ms = {"engine": 1.0, "build 2": 1.04}
        return BlockRun(
            load_target(target, options).fingerprint(),
            {name: (steady(ms[name]),) * 5 for name in engines},
        )

    monkeypatch.setattr(footprint, "measure_blocks", measure_blocks)
    found = footprint.build_spread(context, context.run.document("build", "build.json"))
    assert [set(engines) for engines in asked] == [{"engine", "build 2"}]
    assert asked[0]["build 2"].name == "second.json"
    assert [one["ratio"] for one in found] == [
        None,
        {"median": pytest.approx(1.04), "ci95": pytest.approx([1.04, 1.04])},
        None,
    ]
    assert [(one["seconds"], one["bytes"], one["sha256"]) for one in found] == [
        (one["seconds"], one["bytes"], one["sha256"]) for one in BUILDS
    ]


def test_builds_that_are_alike_are_not_timed(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "measure_blocks", None)  # calling it would fail
    document = {"engine": "engine.json", "builds": [BUILDS[0], BUILDS[2]]}
    found = footprint.build_spread(context, document)
    assert [one["ratio"] for one in found] == [None, None]
