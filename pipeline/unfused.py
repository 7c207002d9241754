"""An ONNX graph's own logits: by ONNX Runtime without its fusions, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from targets.base import Images, Logits

if TYPE_CHECKING:
    import onnxruntime as ort


def run_onnx(model: bytes | Path, images: Images) -> Logits:
    """Logits (n, classes) of a static graph on (n, C, H, W); n a multiple of its batch."""
    session = unfused_session(model)
    entry = session.get_inputs()[0]
    batch = entry.shape[0]
    starts = range(0, len(images), batch)
    rows = [session.run(None, {entry.name: images[at : at + batch]})[0] for at in starts]
    return np.concatenate(rows)


def unfused_session(model: bytes | Path) -> ort.InferenceSession:
    """A session that computes node by node, as the graph is written."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
