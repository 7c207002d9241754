"""An engine against its own graph, and a candidate against its baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.check import parity
from pipeline.check.parity import Difference, check_parity
from pipeline.check.sides import BuildWish, Sides, open_sides
from pipeline.errors import DeployError
from tests.targets.tiny_onnx import tiny_model


def opened(tmp_path: Path, candidate: Path, baseline: Path, target: str = "ort-cpu") -> Sides:
    return open_sides(candidate, baseline, BuildWish(target, 1, tmp_path))


@pytest.mark.parametrize("target", ["fake", "ort-cpu"])
def test_an_engine_agrees_with_its_graph(
    networks: dict[str, Path], tmp_path: Path, target: str
) -> None:
    sides = opened(tmp_path, networks["base"], networks["same"], target)
    gates, notes = check_parity(sides, None)
    assert [(gate.name, gate.verdict) for gate in gates] == [("engine parity", "pass")]
    (note,) = notes
    assert note == "candidate and baseline on made-up images: 0.0e+00, 0 of 8 labels differ"


def test_a_difference_to_the_baseline_is_judged_where_asked(
    networks: dict[str, Path], tmp_path: Path
) -> None:
    sides = opened(tmp_path, networks["other"], networks["base"])
    gates, notes = check_parity(sides, 0.01)
    assert [(gate.name, gate.verdict) for gate in gates] == [
        ("engine parity", "pass"),
        ("parity", "regression"),
    ]
    assert gates[1].value is not None
    assert gates[1].value > 0.01
    assert notes == ()
    gates, _ = check_parity(sides, 2 * gates[1].value)
    assert gates[1].verdict == "pass"


def test_an_engine_that_computes_something_else_is_a_regression(
    networks: dict[str, Path], tmp_path: Path
) -> None:
    sides = opened(tmp_path, networks["base"], networks["same"])
    wrong = Sides(
        sides.target,
        sides.candidate.__class__("x", "0" * 64, sides.candidate.engine, networks["other"]),
        sides.baseline,
    )
    gates, _ = check_parity(wrong, None)
    assert gates[0].verdict == "regression"


def test_engines_of_other_images_or_classes_are_refused(
    networks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx import load_from_string

    model = load_from_string(tiny_model())
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 9
    (tmp_path / "oblong.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DeployError, match=r"different images: \(3, 8, 9\), \(3, 8, 8\)"):
        check_parity(opened(tmp_path, tmp_path / "oblong.onnx", networks["base"]), None)
    with pytest.raises(DeployError, match="logits"):
        Difference.of(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))


def test_without_onnxruntime_or_graph_it_is_told(
    networks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = opened(tmp_path, networks["base"], networks["same"], "fake")
    monkeypatch.setattr(parity, "find_spec", lambda name: None)
    gates, notes = check_parity(sides, None)
    assert gates == ()
    assert "onnxruntime is not installed" in notes[0]


def test_logits_that_are_not_finite_do_not_pass() -> None:
    reference = np.ones((2, 3), np.float32)
    broken = reference.copy()
    broken[0, 0] = np.nan
    assert parity._gate("parity", Difference.of(broken, reference), 0.5).verdict == "regression"
    assert Difference.of(reference, np.zeros((2, 3), np.float32)).max_rel > 1e6
