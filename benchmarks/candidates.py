"""Candidates of ResNet-50 at 224: slicing the skeleton, beside torch surgery and export.

python -m benchmarks.candidates
"""

from __future__ import annotations

import copy
import statistics
import time

import torch
import torchvision
from onnx import load_from_string

from benchmarks.common import environment, write_result
from calibration.candidates import Slicer
from calibration.sampling import first_widths
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector
from pipeline.export import export_onnx
from pipeline.pruning.groups import trace
from pipeline.pruning.surgery import shrink

CUTS, EXPORTS = 60, 3
LIMIT_MS, LEAST_SPEEDUP = 40.0, 50.0


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    example = torch.zeros(1, 3, 224, 224)
    skeleton = trace(model, example)
    slicer = Slicer(skeleton)
    # the corners come first: the full network is no candidate, the narrowest one is too easy
    wanted = first_widths(skeleton.groups, 8, CUTS + 2, seed=0)[2:]
    cut_ms, sizes = [], []
    for widths in wanted:
        began = time.perf_counter()
        onnx = slicer.at_widths(widths)
        cut_ms.append(1e3 * (time.perf_counter() - began))
        sizes.append(len(onnx) / 2**20)
    export_ms = [_by_surgery(model, skeleton, example, widths) for widths in wanted[:EXPORTS]]
    speedup = statistics.median(export_ms) / statistics.median(cut_ms)
    document = {
        "environment": environment(),
        "network": "torchvision resnet50, random weights, (1, 3, 224, 224)",
        "candidates": CUTS,
        "slice_ms": {
            "median": statistics.median(cut_ms),
            "p90": statistics.quantiles(cut_ms, n=10)[-1],
            "most": max(cut_ms),
        },
        "candidate_mib": {"median": statistics.median(sizes), "most": max(sizes)},
        "surgery_and_export_ms": export_ms,
        "speedup": speedup,
        "within": statistics.median(cut_ms) <= LIMIT_MS and speedup >= LEAST_SPEEDUP,
    }
    print({key: document[key] for key in ("slice_ms", "surgery_and_export_ms", "speedup")})
    write_result("candidates.json", document)


def _by_surgery(
    model: torch.nn.Module, skeleton: Skeleton, example: torch.Tensor, widths: WidthVector
) -> float:
    """Milliseconds to the same graph by torch; checked to have the same weights' shapes."""
    plan = skeleton.groups.first_channels(widths, skeleton.sha256)
    began = time.perf_counter()
    onnx = export_onnx(shrink(copy.deepcopy(model), skeleton, plan), example, keep_names=True)
    took_ms = 1e3 * (time.perf_counter() - began)
    shapes = [
        {item.name: tuple(item.dims) for item in load_from_string(data).graph.initializer}
        for data in (onnx, Slicer(skeleton).at_widths(widths))
    ]
    assert all(shapes[1][name] == shape for name, shape in shapes[0].items() if name in shapes[1])
    return took_ms


if __name__ == "__main__":
    main()
