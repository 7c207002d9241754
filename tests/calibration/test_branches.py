from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from calibration.branches import Branch
from calibration.candidates import Slicer
from calibration.cost import NetworkCost, parameter_count
from calibration.counts import Count
from calibration.errors import GroupsError
from calibration.feasibility import group_shares
from calibration.measure import Bench
from calibration.sampling import near, width_sequence
from calibration.skeleton import Skeleton
from calibration.terms import Terms
from calibration.widths import ChannelGroups, Plan, WidthVector
from targets.base import Target

from .residual import STREAM, residual

MULTIPLE = 8


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return residual((16, 32))


def outputs(model: bytes) -> np.ndarray:
    images = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    found = ReferenceEvaluator(onnx.load_from_string(model)).run(None, {"input": images})[0]
    return np.asarray(found)


# plans and files


def test_only_whole_branches_may_keep_nothing(skeleton: Skeleton) -> None:
    groups = skeleton.groups
    plan = groups.first_channels(WidthVector(groups.names, (16, 0, 32)), skeleton.sha256)
    groups.check(plan)
    assert [branch.name for branch in groups.removed(plan.widths())] == ["b0.end"]
    without = groups.first_channels(WidthVector(groups.names, (0, 16, 32)), skeleton.sha256)
    with pytest.raises(GroupsError, match="group stem keeps no channel"):
        groups.check(without)
    with pytest.raises(GroupsError, match=r"b0.start keeps no channel.*\n*.*--remove-blocks"):
        replace(groups, branches=()).check(plan)


def test_the_groups_of_a_branch_go_together(skeleton: Skeleton) -> None:
    both = Branch("b0.end", ("b0.start", "b1.start"), ("b0.end",), "sum0", "x0")
    groups = replace(skeleton.groups, branches=(both,))
    assert groups.removed(WidthVector(groups.names, (16, 0, 0))) == (both,)
    with pytest.raises(GroupsError, match="b0.start keeps no channel"):
        groups.removed(WidthVector(groups.names, (16, 0, 8)))


def test_a_plan_without_a_branch_round_trips(skeleton: Skeleton) -> None:
    plan = Plan(skeleton.sha256, {"stem": (0, 3), "b0.start": (), "b1.start": (7,)})
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.to_json()["schema"] == 2


def test_branches_are_stored_with_the_groups(skeleton: Skeleton, tmp_path: Path) -> None:
    skeleton.save(tmp_path)
    assert Skeleton.open(tmp_path) == skeleton


def test_groups_of_the_schema_before_have_no_branches(skeleton: Skeleton, tmp_path: Path) -> None:
    skeleton.save(tmp_path)
    file = tmp_path / "groups.json"
    document = json.loads(file.read_text())
    del document["branches"]
    file.write_text(json.dumps(document | {"schema": 2}))
    found = Skeleton.open(tmp_path)
    assert found.groups == replace(skeleton.groups, branches=())


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("groups", ["stem", "other"], "cannot have group other"),
        ("groups", [], "is no branch"),
        ("groups", ["b1.start"], "cannot have group b1.start"),  # which another branch has
        ("layers", ["b0.start"], "does not end in a layer of its own"),
        ("skip", 3, "is no branch"),
    ],
)
def test_damaged_branches_are_refused(
    skeleton: Skeleton, tmp_path: Path, key: str, value: Any, told: str
) -> None:
    skeleton.save(tmp_path)
    file = tmp_path / "groups.json"
    document = json.loads(file.read_text())
    document["branches"][0][key] = value
    file.write_text(json.dumps(document))
    with pytest.raises(GroupsError, match=told):
        Skeleton.open(tmp_path)


def test_a_sum_that_the_graph_has_not_is_refused(skeleton: Skeleton) -> None:
    first, second = skeleton.groups.branches
    wrong = replace(skeleton.groups, branches=(replace(first, skip="x1"), second))
    with pytest.raises(GroupsError, match="no sum sum0 of x1"):
        Slicer(replace(skeleton, groups=wrong))


# the cut graph


@pytest.mark.parametrize("kept", [(16, 0, 32), (16, 16, 0), (8, 0, 0), (8, 0, 5)])
def test_a_cut_branch_adds_nothing(skeleton: Skeleton, kept: tuple[int, ...]) -> None:
    """The same as a network whose branch ends in weights and a bias of zero."""
    widths = WidthVector(skeleton.groups.names, kept)
    cut = Slicer(skeleton).at_widths(widths)
    proto = skeleton.proto()
    gone = [branch.name for branch in skeleton.groups.removed(widths)]
    for item in proto.graph.initializer:
        if item.name.rpartition(".")[0] in gone:
            zeros = np.zeros(tuple(item.dims), np.float32)
            item.CopyFrom(onnx.numpy_helper.from_array(zeros, item.name))
    silent = replace(skeleton, onnx_bytes=proto.SerializeToString())
    open_widths = tuple(width or 1 for width in kept)
    expected = Slicer(silent).at_widths(WidthVector(skeleton.groups.names, open_widths))
    assert np.allclose(outputs(cut), outputs(expected), atol=1e-6)


def test_nothing_of_a_cut_branch_is_left_in_the_file(skeleton: Skeleton) -> None:
    cut = onnx.load_from_string(
        Slicer(skeleton).at_widths(WidthVector(skeleton.groups.names, (16, 0, 32)))
    )
    onnx.checker.check_model(cut, full_check=True)
    names = {item.name for item in cut.graph.initializer}
    assert not any(name.startswith("b0.") for name in names)
    assert {"b1.start.weight", "b1.end.bias"} <= names
    assert [node.op_type for node in cut.graph.node].count("Conv") == 3
    assert [node.name for node in cut.graph.node if node.op_type == "Add"] == ["sum1"]


class Stopped(Exception):  # noqa: N818
    """Ends a measurement once it is known what would be built."""


def test_nodes_that_went_are_not_asked_to_stay_in_fp32(skeleton: Skeleton) -> None:
    asked: list[frozenset[str]] = []

    def build(model: bytes, out: Path, batches: object, *, keep_fp32: frozenset[str]) -> None:
        asked.append(keep_fp32)
        raise Stopped

    target = SimpleNamespace(build=build, engine_suffix=".onnx")
    bench = Bench(
        cast("Target", target),
        Slicer(skeleton),
        Path("anchor.onnx"),
        keep_fp32=frozenset({"b0.start", "b1.end"}),
    )
    for kept in ((16, 16, 32), (16, 0, 32)):
        with pytest.raises(Stopped):
            bench.compare(WidthVector(skeleton.groups.names, kept))
    assert asked == [{"b0.start", "b1.end"}, {"b1.end"}]


# counting


def test_a_branch_that_goes_leaves_no_macs_and_no_parameters(skeleton: Skeleton) -> None:
    alone = residual((32,))  # the same network without the first branch
    widths = WidthVector(skeleton.groups.names, (16, 0, 32))
    full = alone.groups.full()
    assert NetworkCost.of(skeleton).macs(widths) == NetworkCost.of(alone).macs(full)
    assert Count.macs(skeleton).at(widths) == NetworkCost.of(alone).macs(full)
    assert parameter_count(skeleton, widths) == parameter_count(alone, full)
    assert Count.parameters(skeleton).at(widths) == parameter_count(alone, full)


@pytest.mark.parametrize("kept", [(16, 16, 32), (8, 1, 5), (16, 0, 0)])
def test_both_ways_to_count_agree(skeleton: Skeleton, kept: tuple[int, ...]) -> None:
    widths = WidthVector(skeleton.groups.names, kept)
    assert Count.parameters(skeleton).at(widths) == parameter_count(skeleton, widths)


def test_a_term_says_whether_a_branch_stands_and_its_slope_is_the_share() -> None:
    terms = Terms(NetworkCost.of(residual((16, 32))), 16)
    assert terms.kinds[-1] == ("branches", 2)
    assert len(terms.shares()) == sum(count for _, count in terms.kinds)
    kept = torch.tensor([[16.0, 0.0, 5.0], [16.0, 16.0, 0.0]], requires_grad=True)
    standing = terms(kept)[:, -2:]
    assert standing.tolist() == [[0, 1], [1, 0]]
    standing.sum().backward()
    assert kept.grad is not None
    assert torch.allclose(kept.grad, torch.tensor([[0.0, 1 / 16, 1 / 32]] * 2))


def test_of_a_branch_that_is_gone_only_the_stream_is_charged() -> None:
    """Every term of the layers inside is 0, so that only what others share remains."""
    terms = Terms(NetworkCost.of(residual((16,))), 16)
    row = terms(torch.tensor([[float(STREAM), 0.0]]))[0]
    names, counts = zip(*terms.kinds, strict=True)
    found = dict(zip(names, row.split(counts), strict=True))
    for kind in ("MACs", "block MACs", "wide MACs", "output tails", "input tails"):
        assert found[kind][1:3].tolist() == [0, 0], kind  # stem, start, end, head
    assert found["widths"].tolist() == [1, 0]
    assert found["branches"].tolist() == [0]


def test_without_branches_no_term_is_added() -> None:
    skeleton = residual((16,))
    bare = replace(skeleton, groups=replace(skeleton.groups, branches=()))
    assert "branches" not in dict(Terms(NetworkCost.of(bare), 16).kinds)


# which widths to measure


def groups_of(inner: tuple[int, ...]) -> ChannelGroups:
    return residual(inner).groups


def test_samples_are_legal_with_and_without_branches() -> None:
    groups = groups_of((16, 32, 64))
    found = list(islice(width_sequence(groups, MULTIPLE, seed=0), 200))
    assert len(set(found)) == 200
    assert found[0] == groups.full()
    assert found[1] == groups.floor(MULTIPLE)
    assert found[1].kept == (8, 0, 0, 0)
    assert found[2].kept == (8, 8, 8, 8)
    for widths in found:
        groups.removed(widths)  # raises where anything else keeps nothing
    gone = np.array([[width == 0 for width in widths.kept] for widths in found])
    assert not gone[:, 0].any()
    assert (gone[:, 1:].mean(0) > 0.08).all()
    assert (gone[:, 1:].mean(0) < 0.5).all()
    assert {(16, 0, 32, 64), (16, 16, 0, 64), (16, 16, 32, 0)} <= {w.kept for w in found}


def test_a_tiny_space_with_branches_ends_when_all_was_seen() -> None:
    groups = groups_of((16, 24))
    found = list(width_sequence(groups, MULTIPLE, seed=0))
    assert len(found) == len(set(found)) == 2 * (2 + 1) * (3 + 1)


def test_branches_come_and_go_near_a_plan() -> None:
    groups = groups_of((16, 32, 64))
    centre = WidthVector(groups.names, (16, 0, 24, 64))
    found = near(centre, groups, MULTIPLE, 40, seed=0)
    assert centre not in found
    for widths in found:
        groups.removed(widths)
    first = [widths.kept[1] for widths in found]
    assert 0 < sum(width == 0 for width in first) < len(first)
    assert any(widths.kept[3] == 0 for widths in found)


def test_a_branch_is_priced_with_all_of_its_groups(skeleton: Skeleton) -> None:
    both = Branch("b0.end", ("b0.start", "b1.start"), ("b0.end",), "sum0", "x0")
    groups = replace(skeleton.groups, branches=(both,))
    seen: list[tuple[float, ...]] = []

    def predict(kept: np.ndarray) -> np.ndarray:
        seen.extend(tuple(row) for row in kept)
        return kept.sum(1)

    group_shares(replace(skeleton, groups=groups), predict, groups.floor(MULTIPLE))
    assert seen == [(8, 16, 32), (16, 0, 0), (16, 0, 0), (16, 16, 32)]
