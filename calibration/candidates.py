"""Candidates by slicing the ONNX skeleton: milliseconds, where surgery and export take seconds."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import onnx
from onnx import numpy_helper

from calibration.errors import GroupsError
from calibration.skeleton import Skeleton
from calibration.widths import Plan, WidthVector


class Slicer:
    """Cuts the skeleton to a plan; holds the dense weights as arrays, so that a cut is cheap."""

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        self._frame = skeleton.proto()
        self._dense = {
            item.name: numpy_helper.to_array(item) for item in self._frame.graph.initializer
        }
        del self._frame.graph.initializer[:]
        del self._frame.graph.value_info[:]  # stale once a width changes; runtimes infer them anew

    @cached_property
    def _depthwise(self) -> dict[str, int]:
        """Node name -> filters an input channel, for convolutions with one input a filter."""
        found = {}
        for node in self._frame.graph.node:
            convs = next((a.i for a in node.attribute if a.name == "group"), 1)
            if node.op_type == "Conv" and convs > 1 and self._dense[node.input[1]].shape[1] == 1:
                found[node.name] = self._dense[node.input[1]].shape[0] // convs
        return found

    def slice(self, plan: Plan) -> bytes:
        """The ONNX bytes of the network with exactly the plan's channels."""
        if plan.skeleton_sha256 != self.skeleton.sha256:
            raise GroupsError("the plan was made for another skeleton", fix="run: pipeline prune")
        self.skeleton.groups.check(plan)
        arrays = dict(self._dense)
        for (tensor, dim), rows in self.skeleton.groups.dropped_rows(plan).items():
            if len(rows):
                arrays[tensor] = np.delete(arrays[tensor], rows, axis=dim)
        model = onnx.ModelProto()
        model.CopyFrom(self._frame)
        for node in model.graph.node:
            if node.name in self._depthwise:
                filters = arrays[node.input[1]].shape[0]
                attribute = next(a for a in node.attribute if a.name == "group")
                attribute.i = filters // self._depthwise[node.name]
        model.graph.initializer.extend(
            numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in arrays.items()
        )
        return bytes(model.SerializeToString())

    def at_widths(self, widths: WidthVector) -> bytes:
        """The first channels of each group: for latency, which ones are kept does not matter."""
        return self.slice(self.skeleton.groups.first_channels(widths, self.skeleton.sha256))
