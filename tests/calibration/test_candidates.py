from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from calibration.candidates import Slicer
from calibration.errors import GroupsError
from calibration.skeleton import Skeleton
from calibration.widths import Plan, WidthVector

from .chain import CLASSES, chain


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return chain((16, 24))


def weights(model: bytes) -> dict[str, np.ndarray]:
    graph = onnx.load_from_string(model).graph
    return {item.name: numpy_helper.to_array(item) for item in graph.initializer}


def logits(model: bytes) -> np.ndarray:
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    (found,) = ReferenceEvaluator(onnx.load_from_string(model)).run(None, {"input": images})
    return np.asarray(found)


def test_a_cut_keeps_exactly_the_plans_rows(skeleton: Skeleton) -> None:
    plan = Plan(skeleton.sha256, {"conv0": (1, 4, 15), "conv1": (0, 23)})
    cut, dense = weights(Slicer(skeleton).slice(plan)), weights(skeleton.onnx_bytes)
    assert np.array_equal(cut["conv0.weight"], dense["conv0.weight"][[1, 4, 15]])
    assert np.array_equal(cut["conv0.bias"], dense["conv0.bias"][[1, 4, 15]])
    assert np.array_equal(cut["conv1.weight"], dense["conv1.weight"][[0, 23]][:, [1, 4, 15]])
    assert np.array_equal(cut["head.weight"], dense["head.weight"][:, [0, 23]])
    assert np.array_equal(cut["head.bias"], dense["head.bias"])


def test_a_cut_is_a_valid_network_that_computes_what_zeroed_channels_do(
    skeleton: Skeleton,
) -> None:
    plan = Plan(skeleton.sha256, {"conv0": (1, 4, 15), "conv1": (0, 7, 23)})
    cut = Slicer(skeleton).slice(plan)
    onnx.checker.check_model(onnx.load_from_string(cut), full_check=True)
    zeroed = onnx.load_from_string(skeleton.onnx_bytes)
    for item in zeroed.graph.initializer:
        name = item.name.partition(".")[0]
        if name in plan.kept:
            array = numpy_helper.to_array(item).copy()
            array[np.setdiff1d(np.arange(len(array)), plan.kept[name])] = 0
            item.CopyFrom(numpy_helper.from_array(array, item.name))
    assert np.allclose(logits(cut), logits(zeroed.SerializeToString()), atol=1e-5)


def test_pruning_nothing_changes_no_bit(skeleton: Skeleton) -> None:
    cut = Slicer(skeleton).at_widths(skeleton.groups.full())
    assert np.array_equal(logits(cut), logits(skeleton.onnx_bytes))
    dense = weights(skeleton.onnx_bytes)
    assert all(np.array_equal(array, dense[name]) for name, array in weights(cut).items())


def test_one_slicer_makes_many_independent_cuts(skeleton: Skeleton) -> None:
    slicer = Slicer(skeleton)
    narrow = WidthVector(skeleton.groups.names, (8, 8))
    first = slicer.at_widths(narrow)
    full = slicer.at_widths(skeleton.groups.full())
    assert slicer.at_widths(narrow) == first
    assert weights(full)["conv1.weight"].shape == (24, 16, 3, 3)
    assert weights(first)["conv1.weight"].shape == (8, 8, 3, 3)
    assert logits(first).shape == (2, CLASSES)


def test_the_bytes_are_what_protobuf_itself_would_read_and_write(skeleton: Skeleton) -> None:
    cut = Slicer(skeleton).slice(Plan(skeleton.sha256, {"conv0": (0, 2), "conv1": (5,)}))
    model = onnx.load_from_string(cut)
    again = onnx.load_from_string(model.SerializeToString())
    assert again == model
    assert [item.name for item in model.graph.initializer].count("conv0.weight") == 1
    assert model.opset_import == onnx.load_from_string(skeleton.onnx_bytes).opset_import
    assert len(cut) == len(model.SerializeToString())  # nothing unknown, nothing twice


def test_a_plan_of_another_skeleton_is_refused(skeleton: Skeleton) -> None:
    plan = skeleton.groups.first_channels(skeleton.groups.full(), skeleton.sha256)
    with pytest.raises(GroupsError, match="another skeleton"):
        Slicer(skeleton).slice(replace(plan, skeleton_sha256="0" * 64))
    with pytest.raises(GroupsError, match="another skeleton"):
        Slicer(chain((16, 24), seed=1)).slice(plan)


def test_a_plan_of_other_channels_is_refused(skeleton: Skeleton) -> None:
    with pytest.raises(GroupsError, match="keeps channel 16 of 16"):
        Slicer(skeleton).slice(Plan(skeleton.sha256, {"conv0": (16,), "conv1": (0,)}))
