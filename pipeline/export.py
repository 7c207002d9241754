"""torch to ONNX: the dense skeleton with its names kept, and the final graph."""

from __future__ import annotations

import ast
import copy
import io
import itertools
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import numpy as np
import onnx
import onnx_ir
import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.unfused import unfused_session
from pipeline.vanished import drop_sums_with_nothing

INPUT, OUTPUT = "input", "output"
OPSET = 20
MOST_BYTES = 2**31 - 2**24  # protobuf ends at 2 GiB; the graph itself is small
FLOATS = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE)


def export_onnx(model: nn.Module, example: torch.Tensor, *, keep_names: bool = False) -> bytes:
    """Export one static graph, input (N, C, H, W) to output (N, classes), opset 20, in memory.

    `keep_names=True` makes the skeleton: batch norm is not folded, so every initializer keeps its
    state-dict name; runtimes fold it themselves when they build. Each node's `doc_string` is the
    path of the module that made it. ModelError if torch cannot
    export the model, or it has several outputs.
    """
    size = sum(item.numel() * item.element_size() for item in model.state_dict().values())
    if size > MOST_BYTES:
        raise ModelError(
            f"the model's weights are {size / 2**30:.1f} GiB; one ONNX file holds at most 2",
            fix="use a smaller model",
        )
    # a copy: a train-mode model would export its dropout, and `.eval()` would not be undone
    still = copy.deepcopy(model).cpu().eval()
    proto = _clean(_exported(still, example.cpu(), optimize=not keep_names), fold=keep_names)
    outputs = [item.name for item in proto.graph.output]
    if len(outputs) != 1 or len(proto.graph.input) != 1:
        raise ModelError(
            f"the model has inputs {[i.name for i in proto.graph.input]} and outputs {outputs}",
            fix="give a model with one image input and one logits output",
        )
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


def _exported(model: nn.Module, example: torch.Tensor, *, optimize: bool) -> object:
    with _quiet():
        try:
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                optimize=optimize,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ModelError(
                f"torch cannot export the model to ONNX: {_first_cause(error)}",
                fix="make its forward traceable by torch.export",
            ) from error
    assert program is not None
    return program.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's deprecations, and the graphs it prints before it fails."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def _first_cause(error: BaseException) -> str:
    """What began it, in one line: the exporter's own words only say which of its steps failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _clean(model: object, *, fold: bool) -> onnx.ModelProto:
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants

    assert isinstance(model, onnx_ir.Model)
    if fold:  # what optimize=True does, short of folding batch norm into the convolutions
        passes.InlinePass()(model)
        fold_constants(model, should_fold=_unless_weight)
        passes.RemoveUnusedNodesPass()(model)
        passes.RemoveUnusedOpsetsPass()(model)
        # padding amounts become readable, and values from inlined functions get their shapes
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        passes.ShapeInferencePass()(model)
    scopes = [_scope(node) for node in model.graph]
    passes.ClearMetadataAndDocStringPass()(model)  # stack traces with local paths
    proto = onnx_ir.to_proto(model)
    # Conv_3 is the same convolution in the skeleton and in the final graph, and in any export
    counters: dict[str, itertools.count[int]] = defaultdict(itertools.count)
    for node in proto.graph.node:
        node.name = f"{node.op_type}_{next(counters[node.op_type])}"
    if fold:
        for node, scope in zip(proto.graph.node, scopes, strict=True):
            node.doc_string = scope
    _drop_zero_biases(proto)
    if fold:
        _complete_shapes(proto)
    else:
        drop_sums_with_nothing(proto)
    return proto


def _unless_weight(node: onnx_ir.Node) -> bool | None:
    """A weight that is transposed or reshaped into another constant would lose its name."""
    if node.op_type not in ("Transpose", "Reshape", "Unsqueeze", "Squeeze"):
        return None
    first = node.inputs[0]
    weight = first is not None and first.is_initializer() and first.dtype in FLOATS
    return False if weight else None


def _scope(node: onnx_ir.Node) -> str:
    """The path of the module whose code made the node; empty where the exporter does not say."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _complete_shapes(proto: onnx.ModelProto) -> None:
    """Fill in the shapes that the exporter leaves open: sizes that the graph itself computes."""
    known = {
        item.name
        for item in (*proto.graph.value_info, *proto.graph.output)
        if item.type.tensor_type.HasField("shape")
        and all(dim.dim_value for dim in item.type.tensor_type.shape.dim)
    }
    made = [name for node in proto.graph.node for name in node.output if name]
    if unknown := [name for name in made if name not in known]:
        asking = onnx.ModelProto()
        asking.CopyFrom(proto)
        asking.graph.output.extend(onnx.ValueInfoProto(name=name) for name in unknown)
        session = unfused_session(asking.SerializeToString())
        image = np.zeros(session.get_inputs()[0].shape, np.float32)
        values = session.run(unknown, {INPUT: image})
        kept = [item for item in proto.graph.value_info if item.name in known]
        del proto.graph.value_info[:]
        proto.graph.value_info.extend(kept)
        for name, value in zip(unknown, values, strict=True):
            kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            info = onnx.helper.make_tensor_value_info(name, kind, value.shape)
            proto.graph.value_info.append(info)


def _drop_zero_biases(proto: onnx.ModelProto) -> None:
    """The exporter gives bias-free convolutions a constant zero bias that would need slicing."""
    zeros = {
        item.name
        for item in proto.graph.initializer
        if item.name.startswith("val_") and not onnx.numpy_helper.to_array(item).any()
    }
    used: set[str] = set()
    for node in proto.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and node.input[2] in zeros:
            del node.input[2]
        used.update(node.input)
    kept = [item for item in proto.graph.initializer if item.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
