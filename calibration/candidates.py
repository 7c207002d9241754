"""Candidates by slicing the ONNX skeleton: milliseconds, where surgery and export take seconds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.branches import check_graph, cut_branches
from calibration.errors import GroupsError
from calibration.skeleton import Skeleton
from calibration.widths import GRAPH_ONLY, Plan, WidthVector

# protobuf field numbers of ONNX, and its two wire types that occur here
MODEL_GRAPH, GRAPH_INITIALIZER = 7, 5
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW = 1, 2, 8, 9
VARINT, BYTES = 0, 2

Rows = slice | NDArray[np.int64]
Array = NDArray[np.generic]


class Slicer:
    """Cuts the skeleton to a plan; holds the dense weights as arrays, so that a cut is cheap.

    The weights of a cut are written straight into the model's bytes: protobuf's own objects would
    copy each of them three times more.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton, self.sha256 = skeleton, skeleton.sha256
        self._frame = skeleton.proto()
        self._dense = {
            item.name: numpy_helper.to_array(item) for item in self._frame.graph.initializer
        }
        pieces = [piece for group in skeleton.groups.prunable for piece in group.slices]
        self._convs = self._counted_convs({piece.tensor for piece in pieces})
        cut = {
            (piece.tensor, piece.dim)
            for piece in pieces
            if piece.tensor in self._dense or piece.tensor in self._convs.values()
        }
        self._cut_dims = {
            tensor: sorted(dim for name, dim in cut if name == tensor) for tensor, _ in cut
        }
        self._untouched = {  # initializers that no group cuts, as they stand in the graph
            item.name: _field(GRAPH_INITIALIZER, item.SerializeToString())
            for item in self._frame.graph.initializer
            if item.name not in self._cut_dims
        }
        check_graph(self._frame.graph, skeleton.groups.branches)
        del self._frame.graph.initializer[:]
        del self._frame.graph.value_info[:]  # stale once a width changes; runtimes infer them anew
        self._rows = [
            (group.name, piece.tensor, piece.dim, np.array(piece.rows, np.int64))
            for group in skeleton.groups.prunable
            for piece in group.slices
            if piece.tensor in self._cut_dims
        ]

    def _counted_convs(self, cut: set[str]) -> dict[str, str]:
        """Node name -> the count of its sub-convolutions, where that is cut; as an array too."""
        found = {}
        for node in self._frame.graph.node:
            if node.op_type in ("Conv", "ConvTranspose"):
                count = f"{GRAPH_ONLY}{node.name}.group"
                if count in cut:
                    found[node.name] = count
                    convs = next(a.i for a in node.attribute if a.name == "group")
                    self._dense[count] = np.zeros(convs, np.int8)
        return found

    def slice(self, plan: Plan) -> bytes:
        """The ONNX bytes of the network with exactly the plan's channels."""
        if plan.skeleton_sha256 != self.sha256:
            raise GroupsError("the plan was made for another skeleton", fix="run: pipeline prune")
        self.skeleton.groups.check(plan)
        rows = self._kept_rows(plan)
        arrays = {tensor: self._cut(tensor, rows) for tensor in self._cut_dims}
        model, unread = self._frame_at(plan, arrays)
        graph = model.graph.SerializeToString(deterministic=True)
        model.ClearField("graph")
        head = model.SerializeToString(deterministic=True)
        parts: list[bytes | memoryview] = [graph]
        parts += [data for name, data in self._untouched.items() if name not in unread]
        for name in arrays.keys() - set(self._convs.values()) - unread:
            parts += _initializer(name, arrays[name])
        return b"".join([head, _head(MODEL_GRAPH, sum(map(len, parts))), *parts])

    def at_widths(self, widths: WidthVector) -> bytes:
        """The first channels of each group: for latency, which ones are kept does not matter."""
        return self.slice(self.skeleton.groups.first_channels(widths, self.sha256))

    def _kept_rows(self, plan: Plan) -> dict[tuple[str, int], Rows]:
        """For each (tensor, dim) that some group cuts, the rows that stay."""
        gone: dict[str, NDArray[np.bool_]] = {}
        for group in self.skeleton.groups.prunable:
            gone[group.name] = np.ones(group.channels, np.bool_)
            gone[group.name][list(plan.kept[group.name])] = False
        masks: dict[tuple[str, int], NDArray[np.bool_]] = {}
        for name, tensor, dim, rows in self._rows:
            if (tensor, dim) not in masks:
                masks[tensor, dim] = np.ones(self._dense[tensor].shape[dim], np.bool_)
            masks[tensor, dim][rows[gone[name]]] = False
        return {key: _rows_of(mask) for key, mask in masks.items()}

    def _cut(self, tensor: str, rows: dict[tuple[str, int], Rows]) -> Array:
        """The rows that stay, contiguous; leading rows are a view until then."""
        array = self._dense[tensor]
        for dim in self._cut_dims[tensor]:
            array = array[(slice(None),) * dim + (rows[tensor, dim],)]
        return np.ascontiguousarray(array)

    def _frame_at(
        self, plan: Plan, arrays: dict[str, Array]
    ) -> tuple[onnx.ModelProto, frozenset[str]]:
        """The model without initializers and the branches that go; what went with these."""
        model = onnx.ModelProto()
        model.CopyFrom(self._frame)
        for node in model.graph.node:
            if node.name in self._convs:
                attribute = next(a for a in node.attribute if a.name == "group")
                attribute.i = len(arrays[self._convs[node.name]])
        gone = self.skeleton.groups.removed(plan.widths())
        return model, cut_branches(model.graph, gone) if gone else frozenset()


def _rows_of(mask: NDArray[np.bool_]) -> Rows:
    kept = np.flatnonzero(mask)
    return slice(0, len(kept)) if mask[: len(kept)].all() else kept


def _initializer(name: str, array: Array) -> Iterator[bytes | memoryview]:
    """A TensorProto as a field of the graph, in pieces: the weights are not copied."""
    data = array.data.cast("B") if array.size else memoryview(b"")
    shape = b"".join(_varint(TENSOR_DIMS << 3 | VARINT) + _varint(size) for size in array.shape)
    kind = _varint(TENSOR_TYPE << 3 | VARINT) + _varint(
        onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    )
    before = shape + kind + _field(TENSOR_NAME, name.encode()) + _head(TENSOR_RAW, len(data))
    yield _head(GRAPH_INITIALIZER, len(before) + len(data)) + before
    yield data


def _field(number: int, content: bytes) -> bytes:
    return _head(number, len(content)) + content


def _head(number: int, length: int) -> bytes:
    return _varint(number << 3 | BYTES) + _varint(length)


def _varint(value: int) -> bytes:
    """Protobuf's whole numbers: seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
