from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.errors import GroupsError
from calibration.widths import (
    ChannelGroup,
    ChannelGroups,
    Plan,
    Slice,
    WidthVector,
    dump,
    legal_widths,
    snap,
)

from .chain import chain

SHA = "5" * 64


def through_json(document: Any) -> Any:
    return json.loads(dump(document))


def one_group(rows: tuple[tuple[int, ...], ...]) -> ChannelGroups:
    group = ChannelGroup("a", len(rows), (Slice("a.weight", 0, rows, gate=True),))
    return ChannelGroups((group,))


# widths


@pytest.mark.parametrize(
    ("channels", "multiple", "legal"),
    [
        (64, 16, (16, 32, 48, 64)),
        (64, 8, (8, 16, 24, 32, 40, 48, 56, 64)),
        (81, 8, (16, 24, 32, 40, 48, 56, 64, 72, 80, 81)),  # a tenth is more than a multiple
        (512, 128, (128, 256, 384, 512)),
        (10, 1, (8, 9, 10)),
        (16, 32, (16,)),
        (8, 8, (8,)),
        (4, 8, (4,)),
        (1, 1, (1,)),
    ],
)
def test_legal_widths(channels: int, multiple: int, legal: tuple[int, ...]) -> None:
    assert legal_widths(channels, multiple) == legal


@given(st.integers(1, 4096), st.sampled_from([1, 2, 4, 8, 16, 32, 64]))
def test_every_legal_width_is_a_multiple_above_the_floor_or_full(c: int, multiple: int) -> None:
    legal = legal_widths(c, multiple)
    assert list(legal) == sorted(set(legal))
    assert legal[-1] == c
    assert all(w % multiple == 0 and w >= 8 and 10 * w >= c for w in legal[:-1])


@pytest.mark.parametrize(
    ("kept", "snapped"), [(1, 16), (23, 16), (24, 32), (25, 32), (56, 64), (64, 64), (999, 64)]
)
def test_snapping_goes_to_the_nearest_and_in_a_tie_up(kept: int, snapped: int) -> None:
    assert snap([kept, 100], [64, 100], 16) == (snapped, 100)


def test_a_width_vector_has_one_width_for_each_group() -> None:
    with pytest.raises(GroupsError, match="2 widths for 1 groups"):
        WidthVector(("a",), (1, 2))
    assert WidthVector(("a", "b"), (3, 4)).as_array().tolist() == [3, 4]


def test_only_groups_without_a_reason_have_a_width() -> None:
    groups = chain((16, 24)).groups
    assert groups.names == ("conv0", "conv1")
    assert groups.full() == WidthVector(("conv0", "conv1"), (16, 24))
    assert groups.floor(8).kept == (legal_widths(16, 8)[0], legal_widths(24, 8)[0])


def test_a_slice_needs_rows_for_every_channel() -> None:
    with pytest.raises(GroupsError, match="rows for 1 channels, the group has 2"):
        ChannelGroup("a", 2, (Slice("a.weight", 0, ((0,),)),))


# plans


def test_a_plan_round_trips() -> None:
    plan = Plan(SHA, {"conv0": (0, 3, 15), "conv1": (7,)})
    assert Plan.from_json(through_json(plan.to_json())) == plan
    assert plan.widths() == WidthVector(("conv0", "conv1"), (3, 1))


def test_a_plan_of_schema_1_is_read_and_has_channels_in_every_group() -> None:
    plan = Plan(SHA, {"conv0": (0, 3), "conv1": (7,)})
    document = plan.to_json() | {"schema": 1}
    assert Plan.from_json(document) == plan
    document["kept"]["conv1"] = []
    with pytest.raises(GroupsError, match="channels of conv1"):
        Plan.from_json(document)


BAD_ROWS: list[Any] = [
    [3, 1],
    [1, 1],
    [-1, 2],
    [0.0, 1],
    [True, 2],
    ["0"],
    [None],
    [[0]],
    {"0": 1},
    "012",
    3,
    None,
]


@pytest.mark.parametrize("rows", BAD_ROWS, ids=repr)
def test_damaged_channel_lists_are_refused(rows: Any) -> None:
    document = Plan(SHA, {"conv0": (0,), "conv1": (0,)}).to_json()
    document["kept"]["conv1"] = rows
    with pytest.raises(GroupsError, match="channels of conv1"):
        Plan.from_json(document)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "plan",
        {},
        {"schema": 3, "skeleton_sha256": SHA, "kept": {"a": [0]}},
        {"schema": 1, "kept": {"a": [0]}},
        {"schema": 1, "skeleton_sha256": 5, "kept": {"a": [0]}},
        {"schema": 1, "skeleton_sha256": SHA},
        {"schema": 1, "skeleton_sha256": SHA, "kept": [["a", [0]]]},
    ],
    ids=repr,
)
def test_what_is_no_plan_is_refused(document: Any) -> None:
    with pytest.raises(GroupsError) as caught:
        Plan.from_json(document)
    assert caught.value.fix == "run: pipeline prune"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(JSON, JSON)
@settings(max_examples=150, deadline=None)
def test_any_document_gives_a_plan_or_a_groups_error(kept: Any, whole: Any) -> None:
    groups = chain_groups()
    for document in (whole, {"schema": 1, "skeleton_sha256": SHA, "kept": kept}):
        try:
            groups.check(Plan.from_json(document))
        except GroupsError:
            continue
        pytest.fail(f"{document} is no plan of these groups")


def chain_groups() -> ChannelGroups:
    return chain((16, 24)).groups


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"conv0": (0,)}, "other groups"),
        ({"conv1": (0,), "conv0": (0,)}, "other groups"),
        ({"conv0": (0,), "conv1": (0,), "head": (0,)}, "other groups"),
        ({"conv0": (0,), "conv1": (0, 24)}, "conv1 keeps channel 24 of 24"),
        ({"conv0": (10**30,), "conv1": (0,)}, "conv0 keeps channel 1000"),
    ],
)
def test_a_plan_must_name_these_groups_and_their_channels(
    kept: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(GroupsError, match=message):
        chain_groups().check(Plan(SHA, kept))


def test_dropped_rows_are_those_of_closed_channels() -> None:
    rows = ((0, 4), (1, 5), (2, 6), (3, 7))
    groups = ChannelGroups(
        (
            ChannelGroup("a", 4, (Slice("x", 1, rows), Slice("a", 0, rows))),
            ChannelGroup("b", 2, (Slice("x", 1, ((9,), (8,))),)),
            ChannelGroup("c", 1, (Slice("x", 1, ((10,),)),), frozen="why"),
        )
    )
    dropped = groups.dropped_rows(Plan(SHA, {"a": (0, 2), "b": (0,)}))
    assert {key: found.tolist() for key, found in dropped.items()} == {
        ("x", 1): [1, 3, 5, 7, 8],
        ("a", 0): [1, 3, 5, 7],
    }


# groups.json


ROWS = st.integers(1, 6).flatmap(
    lambda count: st.lists(st.integers(0, 60), min_size=count, max_size=8 * count, unique=True).map(
        lambda rows: tuple(zip(*[iter(rows)] * count, strict=False))
    )
)


@given(ROWS)
@settings(deadline=None)
def test_irregular_rows_round_trip(rows: tuple[tuple[int, ...], ...]) -> None:
    groups = one_group(rows)
    assert ChannelGroups.from_json(through_json(groups.to_json())) == groups


@given(
    st.integers(0, 9), st.integers(1, 40), st.integers(1, 6), st.integers(1, 5), st.integers(0, 3)
)
def test_regular_rows_are_stored_as_runs(
    start: int, channels: int, count: int, step: int, gap: int
) -> None:
    stride = count * step + gap
    rows = tuple(
        tuple(start + c * stride + i * step for i in range(count)) for c in range(channels)
    )
    document = one_group(rows).to_json()
    assert "explicit" not in document[0]["slices"][0]["rows"]
    assert ChannelGroups.from_json(through_json(document)) == one_group(rows)


def test_groups_of_a_network_round_trip() -> None:
    groups = chain((16, 24, 16)).groups
    assert ChannelGroups.from_json(through_json(groups.to_json())) == groups


MUTATIONS: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "group is a number": ((0,), 3),
    "name is a number": ((0, "name"), 3),
    "channels is text": ((0, "channels"), "16"),
    "channels is true": ((0, "channels"), True),
    "channels is fractional": ((0, "channels"), 16.0),
    "channels is negative": ((0, "channels"), -16),
    "too few channels": ((0, "channels"), 15),
    "huge channels": ((0, "channels"), 10**15),
    "kind is unknown": ((0, "kind"), "outer"),
    "kind is a list": ((0, "kind"), []),
    "frozen is a number": ((0, "frozen"), 0),
    "slices is null": ((0, "slices"), None),
    "slice is text": ((0, "slices", 0), "w"),
    "tensor is null": ((0, "slices", 0, "tensor"), None),
    "dim is negative": ((0, "slices", 0, "dim"), -1),
    "dim is text": ((0, "slices", 0, "dim"), "0"),
    "gate is a number": ((0, "slices", 0, "gate"), 1),
    "rows is null": ((0, "slices", 0, "rows"), None),
    "rows are empty": ((0, "slices", 0, "rows"), {"explicit": []}),
    "rows are negative": ((0, "slices", 0, "rows", "start"), -1),
    "rows run backwards": ((0, "slices", 0, "rows", "stride"), -1),
    "rows repeat": ((0, "slices", 0, "rows", "stride"), 0),
    "rows are fractional": ((0, "slices", 0, "rows", "start"), 0.5),
    "rows are far out": ((0, "slices", 0, "rows", "start"), 10**30),
    "huge count": ((0, "slices", 0, "rows", "count"), 10**12),
    "huge run": ((0, "slices", 0, "rows", "channels"), 10**12),
    "count is infinite": ((0, "slices", 0, "rows", "count"), float("inf")),
    "explicit text": ((0, "slices", 0, "rows"), {"explicit": ["a"] * 16}),
    "explicit duplicate": ((0, "slices", 0, "rows"), {"explicit": [[0]] * 16}),
    "explicit unequal": (
        (0, "slices", 0, "rows"),
        {"explicit": [[i] for i in range(15)] + [[15, 16]]},
    ),
}


def mutated(document: Any, path: tuple[str | int, ...], value: Any) -> Any:
    document = json.loads(json.dumps(document))
    place = document
    for key in path[:-1]:
        place = place[key]
    assert path[-1] in place or isinstance(place, list)
    place[path[-1]] = value
    return document


@pytest.mark.parametrize("case", MUTATIONS)
def test_damaged_groups_are_refused(case: str) -> None:
    path, value = MUTATIONS[case]
    document = mutated(chain_groups().to_json(), path, value)
    with pytest.raises(GroupsError):
        ChannelGroups.from_json(document)


@pytest.mark.parametrize(
    "path",
    [
        *((0, key) for key in ("name", "channels", "kind", "frozen", "slices")),
        *((0, "slices", 0, key) for key in ("tensor", "dim", "gate", "rows")),
        *((0, "slices", 0, "rows", k) for k in ("start", "stride", "count", "step", "channels")),
    ],
    ids=lambda path: str(path[-1]),
)
def test_groups_with_a_missing_key_are_refused(path: tuple[str | int, ...]) -> None:
    document = json.loads(json.dumps(chain_groups().to_json()))
    place = document
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    with pytest.raises(GroupsError, match="groups.json is damaged"):
        ChannelGroups.from_json(document)


@given(JSON)
@settings(max_examples=150, deadline=None)
def test_any_document_gives_groups_or_a_groups_error(document: Any) -> None:
    try:
        groups = ChannelGroups.from_json(document)
    except GroupsError:
        return
    assert groups.every == ()


def test_first_channels_is_a_plan_at_the_widths() -> None:
    groups = chain_groups()
    plan = groups.first_channels(WidthVector(groups.names, (2, 3)), SHA)
    assert plan == Plan(SHA, {"conv0": (0, 1), "conv1": (0, 1, 2)})
    assert np.array_equal(plan.widths().as_array(), [2, 3])
