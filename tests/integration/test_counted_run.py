"""A budget of multiply-adds, from a calibrated run to the bundle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import shape_inference

from pipeline.bundle import Bundle

from .project import complaint_of, events, invoke, stages_run

SHARE = 0.5


def macs_of(model: Path) -> int:
    """Multiply-adds an image, by the shapes in the graph alone."""
    graph = shape_inference.infer_shapes(onnx.load(model)).graph
    weights = {item.name: item.dims for item in graph.initializer}
    pixels = {
        value.name: math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim[2:])
        for value in (*graph.value_info, *graph.output)
    }
    return sum(
        math.prod(weights[node.input[1]]) * pixels[node.output[0]]
        for node in graph.node
        if node.op_type in ("Conv", "Gemm")
    )


def test_the_count_of_the_shipped_graph_decides(run_until: Callable[[str], Path]) -> None:
    folder = run_until("prune")
    flags = ("--objective", "flops", "--budget", f"{SHARE}x", "--out", folder, "--json")
    result = invoke("run", *flags)
    assert result.exit_code == 0, result.stderr
    certificate = json.loads(result.stdout)
    assert stages_run(events(folder))[0] == "prune"  # what was calibrated serves every objective
    macs = certificate["macs"]
    assert certificate["verdict"] == "met"
    assert certificate["budget_ms"] is None
    assert certificate["budget_count"] == int(SHARE * macs["dense"])
    assert macs["pruned"] <= certificate["budget_count"]
    bundle = Bundle.open(folder / "bundle")
    assert macs["pruned"] == macs_of(bundle.path("model.onnx"))
    assert macs["dense"] == macs_of(folder / "trace/skeleton.onnx")
    for name in ("engine", "dense", "predicted"):
        assert certificate["latency_ms"][name]["p50"] > 0
    report = bundle.path("report.html").read_text()
    assert f"{certificate['budget_count']:,}" in report
    plan = [line for line in events(folder) if line["event"] == "counted"]
    assert [line["count"] for line in plan] == [macs["pruned"]]


def test_a_count_below_the_floor_stops_before_any_gated_training(
    run_until: Callable[[str], Path],
) -> None:
    folder = run_until("prune")
    result = invoke("prune", folder, "--objective", "params", "--budget", "0.1k", "--json")
    message, fix = complaint_of(result)
    assert "(100 parameters) is below the floor" in message
    assert fix.startswith("ask for at least 0.")
    assert not (folder / "prune").exists()
