"""The dense network at the runtime's other precisions: which, what is stated, what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import BuildError
from pipeline.run import Context, Run
from pipeline.stages import STAGES, counterfactual
from targets import load_target
from targets.base import TargetOptions
from targets.blocks import BlockRun, OtherEngine
from targets.fake import FakeTarget
from targets.samples import Samples

MEDIANS = {"engine": 1.0, "dense": 2.0, "half": 1.5, "quarter": 0.8}


class Silent:
    def progress(self, label: str, done: int, total: int, note: str = "") -> None: ...

    def say(self, text: str) -> None: ...


class Half(FakeTarget):
    name = "half"


class Quarter(FakeTarget):
    name = "quarter"


def steady(ms: float) -> Samples:
    ns = np.full(20, round(1e6 * ms), np.int64)
    return Samples(ns, ns, np.zeros(20, np.int64))


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A run of the fake target up to its build."""
    run = Run(tmp_path / "run", STAGES)
    run.resolve({"target": "fake", "threads": 1, "processes": 7})
    for name, content in {
        "export/dense.onnx": "the dense graph",
        "build/engine.json": "",
        "build/dense.json": "",
        "build/build.json": '{"engine": "engine.json", "dense": "dense.json"}',
    }.items():
        path = run.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    partial = run.folder / "verify.partial"
    partial.mkdir()
    return Context(run, STAGES["verify"], partial, Silent())


Script = Callable[[Mapping[str, float | None]], list[Mapping[str, Any]]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Call it with the top-1 that each precision loses, None: it cannot be built. Returns the
    engines of each measurement."""

    def given(losses: Mapping[str, float | None]) -> list[Mapping[str, Any]]:
        measured: list[Mapping[str, Any]] = []
        targets = [kind(TargetOptions()) for kind in (Half, Quarter) if kind.name in losses]

        class Referee:
            def __init__(self, context: Context, target: FakeTarget) -> None:
                self.loss = losses[target.name]

            def build(self, onnx: bytes, out: Path) -> SimpleNamespace:
                assert onnx == b"the dense graph"
                out.write_text("half an engine")
                if self.loss is None:
                    raise BuildError("it loses too much", fix="allow it")
                return SimpleNamespace(loss=self.loss)

        def measure_blocks(
            target: str, options: TargetOptions, engines: Mapping[str, Any], **told: Any
        ) -> BlockRun:
            measured.append(engines)
            assert all(e.path.exists() for e in engines.values() if isinstance(e, OtherEngine))
            for count in range(1, told["processes"] + 1):
                run = BlockRun(
                    load_target(target, options).fingerprint(),
                    {name: (steady(MEDIANS[name]),) * count for name in engines},
                )
                if told["stop"](run):
                    break
            return run

        monkeypatch.setattr(counterfactual, "siblings", lambda _: targets)
        monkeypatch.setattr(counterfactual, "Referee", Referee)
        monkeypatch.setattr(counterfactual, "measure_blocks", measure_blocks)
        return measured

    return given


def test_every_precision_is_stated_beside_the_engine(context: Context, script: Script) -> None:
    measured = script({"half": 0.0, "quarter": 0.004})
    found = counterfactual.counterfactual(context)
    assert [set(engines) for engines in measured] == [{"engine", "dense", "half", "quarter"}]
    assert found is not None
    assert found["best"] == "quarter"
    assert found["speedup"]["median"] == pytest.approx(0.8)  # pruning was for nothing
    assert (found["dense"]["p50"], found["engine"]["p50"]) == (2.0, 1.0)
    half, quarter = found["alternatives"]
    assert (half["target"], half["latency_ms"]["p50"], half["top1_loss"]) == ("half", 1.5, 0.0)
    assert (quarter["target"], quarter["latency_ms"]["p50"]) == ("quarter", 0.8)
    assert (quarter["top1_loss"], quarter["reason"]) == (0.004, "")
    assert half["latency_ms"]["samples"] == 5 * 20  # it ended as soon as it was clear
    assert not list(context.partial.iterdir())  # engines that nobody ships


def test_a_precision_that_cannot_be_built_is_told(context: Context, script: Script) -> None:
    measured = script({"half": None, "quarter": 0.0})
    found = counterfactual.counterfactual(context)
    assert found is not None
    assert found["alternatives"][0] == {
        "target": "half",
        "precision": "fp32",
        "latency_ms": None,
        "top1_loss": None,
        "reason": "it loses too much",
    }
    assert set(measured[0]) == {"engine", "dense", "quarter"}
    assert not list(context.partial.iterdir())


def test_where_nothing_can_be_built_nothing_is_measured(context: Context, script: Script) -> None:
    measured = script({"half": None})
    found = counterfactual.counterfactual(context)
    assert found is not None
    assert (found["best"], len(found["alternatives"]), measured) == (None, 1, [])
    assert set(found) == {"alternatives", "best"}
    script({})
    assert counterfactual.counterfactual(context) == {"alternatives": [], "best": None}


def test_the_dense_engine_itself_may_be_the_fastest_rival(
    context: Context, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MEDIANS, "half", 2.5)
    script({"half": 0.0})
    found = counterfactual.counterfactual(context)
    assert found is not None
    assert found["best"] == "fake"  # the run's own target, not "dense"
    assert found["speedup"]["median"] == pytest.approx(2.0)


def test_it_can_be_left_out(context: Context, script: Script) -> None:
    measured = script({"half": 0.0})
    context.run.resolve({"counterfactual": False})
    assert counterfactual.counterfactual(context) is None
    assert not measured


def test_siblings_are_other_precisions_of_the_runtime_with_the_same_options() -> None:
    pytest.importorskip("onnxruntime")
    target = load_target("ort-cpu", TargetOptions(batch=3, threads=2, spinning=False))
    found = counterfactual.siblings(target)
    assert [one.name for one in found] == ["ort-cpu-int8"]
    options = found[0].options
    assert (options.batch, options.threads, options.spinning) == (3, 2, False)


def test_a_precision_that_does_not_run_here_is_no_sibling() -> None:
    target = load_target("trt-fp32", TargetOptions())
    names = {one.name for one in counterfactual.siblings(target)}
    assert names <= {"trt-fp16", "trt-int8"}
    if target.is_available():  # reasons why not
        assert not names
