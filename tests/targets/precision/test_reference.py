from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from targets.errors import BuildError
from targets.precision import reference
from targets.precision.reference import (
    Runner,
    in_batches,
    node_names,
    parsed,
    read_onnx,
    relative_error,
    require_nodes,
    shrunk,
)
from targets.signature import Signature

from ..tiny_onnx import tiny_model
from ..wide_range import images, network, serialised

pytest.importorskip("onnxruntime")


def test_logits_of_any_number_of_images() -> None:
    evaluator = ReferenceEvaluator(onnx.load_from_string(network(batch=1)))
    batch = images(5)
    expected = np.concatenate([evaluator.run(None, {"images": image[None]})[0] for image in batch])
    runner = Runner(parsed(network(batch=2)))
    for n in (1, 2, 5):
        assert np.allclose(runner.logits(batch[:n]), expected[:n], rtol=1e-5, atol=1e-6)


def test_a_batch_is_filled_up_with_real_images() -> None:
    signature = Signature("images", "logits", (4, 3, 8, 8), 5)
    first, second = in_batches(images(6), signature)
    assert first.shape == second.shape == (4, 3, 8, 8)
    assert np.array_equal(second, images(6)[[4, 5, 4, 5]])


def test_unnamed_nodes_are_called_after_what_they_compute() -> None:
    assert node_names(parsed(tiny_model())) == (
        "conv1",
        "relu1",
        "conv2",
        "pooled",
        "features",
        "logits",
    )


def test_names_become_unique() -> None:
    pool = helper.make_node("GlobalAveragePool", ["images"], ["b"], "b")
    relu = helper.make_node("Relu", ["b"], ["a"])
    twice = helper.make_node("Relu", ["a"], ["c"], "b")
    flat = helper.make_node("Flatten", ["c"], ["f"], "a")
    gemm = helper.make_node("Gemm", ["f", "w"], ["logits"])
    weights = {"w": np.ones((3, 5), np.float32)}
    model = parsed(serialised([pool, relu, twice, flat, gemm], weights))
    assert node_names(model) == ("b", "a", "c", "f", "logits")


def test_unknown_names_are_listed() -> None:
    model = parsed(network())
    require_nodes(model, ["conv1", "gemm"])
    with pytest.raises(BuildError, match="no node a, b to keep"):
        require_nodes(model, ["conv1", "b", "a"])


@pytest.mark.parametrize(
    ("logits", "expected", "error"),
    [
        ([[1.0, -2.0]], [[1.0, -2.0]], 0.0),
        ([[1.5, -2.0]], [[1.0, -2.0]], 0.25),
        ([[np.nan, 0.0]], [[1.0, 0.0]], np.inf),
        ([[np.inf, 0.0]], [[1.0, 0.0]], np.inf),
        ([[0.0, 0.0]], [[0.0, 0.0]], 0.0),
        ([[0.1, 0.0]], [[0.0, 0.0]], np.inf),
    ],
)
def test_relative_error(
    logits: list[list[float]], expected: list[list[float]], error: float
) -> None:
    assert relative_error(np.float32(logits), np.float32(expected)) == error


@pytest.mark.parametrize("needed", [set(), {"n7"}, {"n0", "n39"}, {"n11", "n12", "n13", "n30"}])
def test_shrunk_finds_exactly_what_is_needed_in_few_trials(needed: set[str]) -> None:
    trials: list[frozenset[str]] = []

    def passes(names: frozenset[str]) -> bool:
        trials.append(names)
        return needed <= names

    names = tuple(f"n{index}" for index in range(40))
    assert set(shrunk(names, passes)) == needed
    assert len(trials) <= 4 + 12 * len(needed)


def test_shrunk_leaves_nothing_out_that_is_needed_only_then() -> None:
    # either of two suffices, but not neither
    def passes(names: frozenset[str]) -> bool:
        return "b" in names or "d" in names

    assert len(shrunk(("a", "b", "c", "d", "e"), passes)) == 1


def test_two_outputs_are_refused_by_name() -> None:
    with pytest.raises(BuildError, match=r"2: logits \(2, 5\), features \(2, 8\)"):
        Runner(parsed(tiny_model(two_outputs=True)))


def test_without_the_runtime_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BuildError, match="onnxruntime is needed") as raised:
        Runner(parsed(network()))
    assert raised.value.fix == "pip install 'wgates[ort-cpu]'"


def test_a_refused_model_names_its_node() -> None:
    odd = helper.make_node("Odd", ["images"], ["a"], "odd_one", domain="my.ops")
    flat = helper.make_node("Flatten", ["a"], ["f"])
    gemm = helper.make_node("Gemm", ["f", "w"], ["logits"])
    weights = {"w": np.ones((192, 5), np.float32)}
    model = parsed(serialised([odd, flat, gemm], weights, domains=("my.ops",)))
    with pytest.raises(BuildError, match=r"node odd_one \(my\.ops:Odd\): ") as raised:
        Runner(model)
    assert "another target" in raised.value.fix


def test_a_model_with_external_weights_is_read_whole(tmp_path: Path) -> None:
    model = onnx.load_from_string(tiny_model(width=64))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=64)
    assert (tmp_path / "weights").stat().st_size > 0
    read = Runner(parsed(read_onnx(path))).logits(images(2))
    assert np.array_equal(read, Runner(parsed(tiny_model(width=64))).logits(images(2)))
    (tmp_path / "weights").unlink()
    with pytest.raises(BuildError, match=r"cannot read .*model\.onnx"):
        read_onnx(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"absent\.onnx: No such file"):
        read_onnx(tmp_path / "absent.onnx")
