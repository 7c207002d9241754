from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calibration.errors import GroupsError
from calibration.skeleton import Skeleton
from calibration.widths import dump

from ..pipeline.pruning.networks import named
from .chain import chain


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    chain((16, 24)).save(tmp_path)
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    path = folder / "groups.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_skeleton_round_trips(saved: Path) -> None:
    assert Skeleton.open(saved) == chain((16, 24))


def test_a_traced_skeleton_round_trips(tmp_path: Path) -> None:
    skeleton = named("torchvision:mobilenet_v2").skeleton
    skeleton.save(tmp_path)
    assert Skeleton.open(tmp_path) == skeleton


def test_files_of_different_traces_are_refused(saved: Path) -> None:
    (saved / "skeleton.onnx").write_bytes(chain((16, 24), seed=1).onnx_bytes)
    with pytest.raises(GroupsError, match="of different traces"):
        Skeleton.open(saved)


def test_a_newer_schema_is_refused(saved: Path) -> None:
    change(saved, schema=4)
    with pytest.raises(GroupsError, match="schema 4"):
        Skeleton.open(saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_shape", None),
        ("input_shape", [2, 3, 8]),
        ("input_shape", [2, 3, 8, "8"]),
        ("input_shape", [2, 3, 8, -8]),
        ("input_shape", [2, 3, 8, float("inf")]),
        ("layers", None),
        ("layers", [3]),
        ("layers", [{"tensor": "conv0.weight", "positions": 64}]),
        ("layers", [{"tensor": "conv0.weight", "positions": 0, "shape": [16, 3, 3, 3]}]),
        ("layers", [{"tensor": "conv0.weight", "positions": 64, "shape": ["16"]}]),
        ("parameters", None),
        ("parameters", []),
        ("parameters", {"conv0.weight": 16}),
        ("parameters", {"conv0.weight": [True]}),
        ("parameters", {"conv0.weight": [8, 3, 3, 3]}),  # the group has rows up to 15
        ("parameters", {"conv1.weight": [24]}),  # the group slices dimension 1
        ("groups", None),
        ("groups", 3),
        ("groups", {}.fromkeys("a", 1)),
    ],
)
def test_damaged_documents_are_refused(saved: Path, key: str, value: Any) -> None:
    change(saved, **{key: value})
    with pytest.raises(GroupsError, match="groups.json is damaged"):
        Skeleton.open(saved)


@pytest.mark.parametrize(
    "key", ["schema", "skeleton_sha256", "input_shape", "groups", "layers", "parameters"]
)
def test_missing_keys_are_refused(saved: Path, key: str) -> None:
    path = saved / "groups.json"
    document = json.loads(path.read_text())
    del document[key]
    path.write_text(dump(document))
    with pytest.raises(GroupsError) as caught:
        Skeleton.open(saved)
    assert caught.value.fix == "run: pipeline trace"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '"groups"', "[" * 100_000, '{"a":' * 100_000, "\udcff"],
    ids=lambda text: text[:9].encode(errors="replace").decode() + "...",
)
def test_what_is_no_document_is_refused(saved: Path, text: str) -> None:
    (saved / "groups.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(GroupsError, match="groups.json is damaged"):
        Skeleton.open(saved)


def test_a_file_cut_short_is_refused(saved: Path) -> None:
    path = saved / "groups.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(GroupsError, match="groups.json is damaged"):
        Skeleton.open(saved)
