from __future__ import annotations

import onnx

from calibration.candidates import Slicer
from calibration.widths import WidthVector
from pipeline.stages.removed_nodes import named_as_before, still_there

from ...calibration.residual import residual

SKELETON = residual((16, 32))
GROUPS = SKELETON.groups
FULL = GROUPS.first_channels(GROUPS.full(), SKELETON.sha256)
CUT = GROUPS.first_channels(WidthVector(GROUPS.names, (16, 0, 32)), SKELETON.sha256)


def counted(model: bytes) -> bytes:
    """As an export names the nodes: by operator, from nought."""
    proto = onnx.load_from_string(model)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    return proto.SerializeToString()


def names(model: bytes) -> list[str]:
    return [node.name for node in onnx.load_from_string(model).graph.node]


def test_nodes_have_the_names_of_the_dense_graph() -> None:
    cut = Slicer(SKELETON).slice(CUT)
    renamed = named_as_before(counted(cut), SKELETON, CUT)
    assert names(renamed) == names(cut)
    assert "b1.start" in names(renamed)
    assert "b0.start" not in names(renamed)


def test_operators_that_the_export_fuses_keep_their_own_names() -> None:
    proto = onnx.load_from_string(counted(Slicer(SKELETON).slice(CUT)))
    extra = onnx.helper.make_node("Add", ["x0", "x0"], ["unread"], "Add_99")
    proto.graph.node.append(extra)
    renamed = names(named_as_before(proto.SerializeToString(), SKELETON, CUT))
    assert "Add_99" in renamed
    assert "sum1" not in renamed
    assert "b1.start" in renamed


def test_without_a_removed_branch_nothing_changes() -> None:
    model = counted(Slicer(SKELETON).slice(FULL))
    assert named_as_before(model, SKELETON, FULL) is model


def test_nodes_that_went_need_not_stay_in_fp32() -> None:
    asked = ("b0.start", "b1.end", "nobody's")
    assert still_there(asked, SKELETON, FULL) == asked
    assert still_there(asked, SKELETON, CUT) == ("b1.end", "nobody's")
