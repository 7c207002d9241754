"""A budget below the narrowest widths, met by a network without its residual branch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from pipeline.bundle import Bundle
from pipeline.stages.group_losses import TRAINED

from .project import complaint_of, invoke
from .test_counted_run import macs_of

SHARE = 0.1  # the narrowest widths alone leave 0.15 of the multiply-adds
TRACED = ("--residual", "inner", "--remove-blocks")


def test_a_bundle_without_its_block(run_until: Callable[[str], Path]) -> None:
    folder = run_until("trace")
    budget = ("--objective", "flops", "--budget", f"{SHARE}x")
    quick = ("--no-counterfactual", "--cold-starts", "0", "--no-cliffs", "--finetune-epochs", "1")
    result = invoke("run", "--out", folder, *TRACED, *budget, *quick, "--json")
    assert result.exit_code == 0, result.stderr
    certificate = json.loads(result.stdout)
    assert certificate["verdict"] == "met"
    assert certificate["macs"]["pruned"] <= SHARE * certificate["macs"]["dense"]
    bundle = Bundle.open(folder / "bundle")
    plan = json.loads(bundle.read("plan.json"))
    assert plan["schema"] == 2
    assert [name for name, kept in plan["kept"].items() if not kept] == ["conv3"]
    graph = onnx.load(bundle.path("model.onnx")).graph
    assert macs_of(bundle.path("model.onnx")) == certificate["macs"]["pruned"]
    # the names that the nodes have in the dense graph
    names = [node.name for node in graph.node if node.op_type in ("Conv", "Add", "Gemm")]
    assert names == ["Conv_0", "Conv_1", "Gemm_0"]
    every_group_was_asked_what_is_lost_without_it(folder)


def every_group_was_asked_what_is_lost_without_it(folder: Path) -> None:
    found = json.loads((folder / "prune/group-losses.json").read_text())
    widths = json.loads((folder / "prune/prune.json").read_text())["widths"]
    full = {item["group"]: item["full"] for item in widths}
    assert found["groups"].keys() == full.keys()
    assert found["guessing"] == pytest.approx(math.log(10))
    for name, losses in found["groups"].items():
        kept = [item["kept"] for item in losses]
        assert kept == sorted(kept)
        assert kept[-1] < full[name]
        assert losses[0]["loss"] > found["dense"], "its least width costs something"
    assert len(found["branches"]) == 1
    asked = json.loads((folder / "prune/plan-losses.json").read_text())
    assert asked["groups"] == list(full)
    assert all(len(plan["kept"]) == len(full) for plan in asked["plans"])
    assert all(math.isfinite(plan["loss"]) for plan in asked["plans"])
    of_all = sorted(asked["plans"], key=lambda plan: plan["loss"])
    steps = ["after_steps" in plan for plan in of_all]
    assert steps == [rank < TRAINED for rank in range(len(of_all))]
    variants = [plan["variant"] for plan in asked["plans"]]
    assert variants == sorted(set(variants))


def test_with_narrower_widths_alone_the_budget_is_out_of_reach(
    run_until: Callable[[str], Path],
) -> None:
    folder = run_until("trace")
    assert invoke("trace", folder, "--residual", "inner").exit_code == 0
    assert invoke("calibrate", folder, "--no-cliffs").exit_code == 0
    result = invoke("prune", folder, "--objective", "flops", "--budget", f"{SHARE}x", "--json")
    message, _ = complaint_of(result)
    assert "is below the floor" in message
