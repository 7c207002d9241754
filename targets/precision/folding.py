"""Batch norm folded into the convolutions before it, as every runtime does when it builds.

A low precision is decided on the graph that will run: a convolution and its batch norm are one.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

from targets.ort.session import refusals

BATCH_NORM = "BatchNormalization"


def without_batch_norm(model: Any) -> Any:
    """A ModelProto without batch norm after convolutions; nodes keep their names.

    ONNX Runtime's basic rewriting does it, which yields standard operators only.
    """
    if all(node.op_type != BATCH_NORM for node in model.graph.node):
        return model
    onnx = importlib.import_module("onnx")
    runtime = importlib.import_module("onnxruntime")
    serialised = model.SerializeToString()
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # a refusal comes as an exception
    with tempfile.TemporaryDirectory(prefix="wgates-") as folder:
        rewritten = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(rewritten)
        with refusals(serialised):
            runtime.InferenceSession(serialised, options, providers=["CPUExecutionProvider"])
        folded = onnx.load(rewritten)
    del folded.graph.value_info[:]  # it still tells of tensors that are gone
    _drop_unused_domains(folded)
    return folded


def _drop_unused_domains(model: Any) -> None:
    """ONNX Runtime imports all the operator sets it knows; other runtimes know fewer."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
