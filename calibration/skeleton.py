"""The dense network as calibration sees it: an ONNX graph, its channel groups, its layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import onnx

from calibration.errors import GroupsError
from calibration.widths import ChannelGroups, dump, whole

SCHEMA = 3  # of groups.json; 2 has no branches, and is read as that


@dataclass(frozen=True)
class Layer:
    """A layer that multiplies: its weight tensor and the output pixels an image."""

    tensor: str
    positions: int
    shape: tuple[int, ...]  # of the weight: (out, in / groups, *kernel)


@dataclass(frozen=True)
class Skeleton:
    """`skeleton.onnx` and `groups.json` of a trace, bound to each other by the graph's hash."""

    onnx_bytes: bytes = field(repr=False)
    groups: ChannelGroups
    layers: tuple[Layer, ...]
    parameters: Mapping[str, tuple[int, ...]]  # trained tensors and their shapes, for counting
    input_shape: tuple[int, int, int, int]  # (N, C, H, W), static

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.onnx_bytes).hexdigest()

    def proto(self) -> onnx.ModelProto:
        return onnx.load_from_string(self.onnx_bytes)

    def save(self, folder: Path) -> None:
        """Write `skeleton.onnx` and `groups.json`."""
        (folder / "skeleton.onnx").write_bytes(self.onnx_bytes)
        (folder / "groups.json").write_text(dump(self._to_json()), encoding="utf-8")

    def _to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "skeleton_sha256": self.sha256,
            "input_shape": list(self.input_shape),
            "groups": self.groups.to_json(),
            "branches": [branch.to_json() for branch in self.groups.branches],
            "layers": [
                {"tensor": item.tensor, "positions": item.positions, "shape": list(item.shape)}
                for item in self.layers
            ],
            "parameters": {name: list(shape) for name, shape in self.parameters.items()},
        }

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read both files; GroupsError if they do not belong together."""
        data = (folder / "skeleton.onnx").read_bytes()
        try:
            document = json.loads((folder / "groups.json").read_text(encoding="utf-8"))
            if document["schema"] not in (2, SCHEMA):
                raise GroupsError(
                    f"groups.json has schema {document['schema']}, this version: {SCHEMA}",
                    fix="run: pipeline trace",
                )
            if document["skeleton_sha256"] != hashlib.sha256(data).hexdigest():
                raise GroupsError(
                    "groups.json and skeleton.onnx are of different traces",
                    fix="run: pipeline trace",
                )
            n, c, h, w = _sizes(document["input_shape"])
            layers = tuple(
                Layer(str(item["tensor"]), whole(item["positions"], 1), _sizes(item["shape"]))
                for item in document["layers"]
            )
            parameters = {name: _sizes(shape) for name, shape in document["parameters"].items()}
            groups = ChannelGroups.from_json(document["groups"], document.get("branches", ()))
            _check_rows(groups, parameters)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise GroupsError(
                f"groups.json is damaged: {error or type(error).__name__}",
                fix="run: pipeline trace",
            ) from error
        return cls(data, groups, layers, parameters, (n, c, h, w))


def _check_rows(groups: ChannelGroups, parameters: Mapping[str, tuple[int, ...]]) -> None:
    for group in groups.every:
        for piece in group.slices:
            shape = parameters.get(piece.tensor)  # None: a buffer, or a second name of a weight
            rows = max(row for owned in piece.rows for row in owned) + 1
            if shape is not None and (piece.dim >= len(shape) or rows > shape[piece.dim]):
                raise ValueError(f"{group.name} has rows that {piece.tensor} {shape} has not")


def _sizes(document: Any) -> tuple[int, ...]:
    return tuple(whole(size, 1) for size in document)
