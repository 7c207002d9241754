"""From a model and a budget to a bundle, through the console command."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file

from calibration.several import FEWEST
from pipeline.bundle import Bundle
from pipeline.data.sources import load_data
from pipeline.stages.solving import PLANS, PLANS_LATER
from pipeline.triton import parse_config
from targets.loads import LOADS
from targets.samples import Samples
from targets.timing import MIN_ROUNDS

from .conftest import Done
from .project import SETTINGS, STAGES, events, finish, invoke, stages_run, start, write_plan

EXIT_CODES = {"met": 0, "missed": 1, "inconclusive": 3}
QUANTILES = {"p50", "p90", "p99", "ci95", "samples"}
# what scripts rely on; then what the report and the reader of a certificate need beside it
CERTIFICATE = {
    "target": None,
    "fingerprint": None,
    "budget_ms": None,
    "verdict": None,
    "latency_ms": {"engine": QUANTILES, "dense": QUANTILES, "predicted": QUANTILES},
    "speedup": {"median", "ci95"},
    "accuracy": {
        name: {"top1", "n", "ci95"} for name in ("dense", "pruned", "finetuned", "onnx", "engine")
    },
    "parity": {"max_abs", "max_rel", "label_flips", "n", "tolerance"},
    "params": {"dense", "pruned"},
    "macs": {"dense", "pruned"},
    "engine_bytes": {"dense", "pruned"},
}
BESIDE = {
    *("schema", "model", "data", "data_sha256", "objective", "budget", "budget_count"),
    *("percentile", "doubts", "attribution", "build", "footprint", "counterfactual"),
}


@pytest.fixture(scope="module")
def certificate(whole_run: Done) -> dict[str, Any]:
    return json.loads(whole_run.stdout)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def keys_of(document: Any, *, like: Any) -> Any:
    """The keys of `document`, as deep as `like` describes them."""
    if isinstance(like, dict):
        return {key: keys_of(value, like=like.get(key)) for key, value in document.items()}
    return set(document) if isinstance(like, set) else None


def test_exit_code_is_the_verdict(whole_run: Done, certificate: dict[str, Any]) -> None:
    assert whole_run.code == EXIT_CODES[certificate["verdict"]], whole_run.stderr


def test_json_prints_one_document_and_nothing_else(whole_run: Done) -> None:
    document, end = json.JSONDecoder().raw_decode(whole_run.stdout)
    assert whole_run.stdout[end:] == "\n"
    assert document == json.loads((whole_run.folder / "verify/certificate.json").read_text())


def test_nothing_is_said_but_the_verdict(whole_run: Done) -> None:
    # no warning of a library reaches the user's terminal
    lines = whole_run.stderr.splitlines()
    assert len(lines) == (0 if whole_run.code == 0 else 2), whole_run.stderr


def test_certificate_has_the_keys_that_scripts_rely_on(certificate: dict[str, Any]) -> None:
    found = keys_of(certificate, like=CERTIFICATE)
    assert {key: value for key, value in found.items() if key in CERTIFICATE} == CERTIFICATE
    assert set(found) - set(CERTIFICATE) == BESIDE


def test_latencies_agree_with_each_other(certificate: dict[str, Any]) -> None:
    for name in ("engine", "dense"):
        latency = certificate["latency_ms"][name]
        low, high = latency["ci95"]
        assert 0 < low <= latency["p50"] <= high
        assert latency["p50"] <= latency["p90"] <= latency["p99"]
        assert latency["samples"] > 299
    dense_ms = certificate["latency_ms"]["dense"]["p50"]
    assert certificate["budget_ms"] == pytest.approx(0.75 * dense_ms)
    low, high = certificate["speedup"]["ci95"]
    assert low <= certificate["speedup"]["median"] <= high


def test_verdict_is_that_of_the_raw_blocks(whole_run: Done, certificate: dict[str, Any]) -> None:
    """Decided again from the numbers; on the budget itself either verdict may stand."""
    blocks = json.loads((whole_run.folder / "verify/latency.json").read_text())
    assert len(blocks["engine"]) == certificate["latency_ms"]["engine"]["samples"]
    low, high = certificate["speedup"]["ci95"]
    if 1 / low < 0.74:
        assert certificate["verdict"] == "met"
    elif 1 / high > 0.76:
        assert certificate["verdict"] == "missed"
    else:
        assert certificate["verdict"] in EXIT_CODES
    ratio = np.median(blocks["dense"]) / np.median(blocks["engine"])
    assert ratio == pytest.approx(certificate["speedup"]["median"], rel=0.2)


def test_bundle_opens_and_holds_the_engine_that_was_verified(whole_run: Done) -> None:
    bundle = Bundle.open(whole_run.folder / "bundle")
    build = json.loads((whole_run.folder / "build/build.json").read_text())
    engine = sha256(bundle.path(bundle.manifest.engine))
    assert engine == build["builds"][0]["sha256"]
    assert engine == sha256(bundle.path("triton/tiny/1/model.onnx"))
    verified = json.loads((whole_run.folder / "verify/stage.json").read_text())
    assert verified["needs"]["build"] == sha256(whole_run.folder / "build/stage.json")


def test_triton_is_told_the_ports_of_the_engine(whole_run: Done) -> None:
    bundle = Bundle.open(whole_run.folder / "bundle")
    config = parse_config(bundle.read("triton/tiny/config.pbtxt").decode())
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    served = bundle.read("triton/tiny/1/model.onnx")
    session = onnxruntime.InferenceSession(served, options)
    for told, found in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        assert [(one.name, list(one.dims)) for one in told] == [(p.name, p.shape) for p in found]
    labels = bundle.read("triton/tiny/labels.txt").decode().splitlines()
    assert tuple(labels) == bundle.manifest.classes


def test_bundle_gives_the_certified_accuracy(
    whole_run: Done, certificate: dict[str, Any], project: Path
) -> None:
    bundle = Bundle.open(whole_run.folder / "bundle")
    assert bundle.certificate == certificate
    data = load_data("digits.py:small")
    images, labels = next(data.batches("test", 80))
    with bundle.load() as engine:
        right = (engine.infer(images.numpy()).argmax(1) == labels.numpy()).mean()
    found = certificate["accuracy"]["engine"]
    assert (found["top1"], found["n"]) == (pytest.approx(right), 80)


def test_the_prediction_is_stated_at_the_pace_of_verify(
    whole_run: Done, certificate: dict[str, Any]
) -> None:
    prune = json.loads((whole_run.folder / "prune/prune.json").read_text())
    chosen = prune["rounds"][-1]
    calibrated = chosen["measured_ms"] / chosen["ratio"]  # the dense network, as it was timed then
    dense, predicted = (certificate["latency_ms"][name] for name in ("dense", "predicted"))
    assert predicted["p50"] / dense["p50"] == pytest.approx(prune["predicted_ms"] / calibrated)
    assert predicted["ci95"][0] < predicted["p50"] < predicted["ci95"][1]


def test_sizes_are_those_of_the_files(whole_run: Done, certificate: dict[str, Any]) -> None:
    for name, file in (
        ("dense", "prepare/dense.safetensors"),
        ("pruned", "bundle/weights.safetensors"),
    ):
        tensors = load_file(whole_run.folder / file)
        trained = {n: t for n, t in tensors.items() if "running" not in n and "num_" not in n}
        assert certificate["params"][name] == sum(math.prod(t.shape) for t in trained.values())
    engine = whole_run.folder / "bundle/engine.onnx"
    assert certificate["engine_bytes"]["pruned"] == engine.stat().st_size
    assert certificate["params"]["pruned"] < certificate["params"]["dense"]


def test_every_proposed_plan_was_timed_in_several_processes_once_or_twice(whole_run: Done) -> None:
    rounds = json.loads((whole_run.folder / "prune/prune.json").read_text())["rounds"]
    asked = json.loads((whole_run.folder / "prune/plan-losses.json").read_text())["plans"]
    first, later = (timings(whole_run.folder / "prune" / f) for f in (PLANS, PLANS_LATER))
    proposed = {tuple(item["kept"]): item["ratio"] for item in rounds}
    before_training = {tuple(plan["kept"]) for plan in asked if "fits" in plan}
    told = [event for event in events(whole_run.folder) if event["event"] == "closed loop"]
    before_choosing = {tuple(event["kept"]) for event in told if event["round"] == 0}
    assert before_choosing
    assert first.keys() == proposed.keys() | before_training | before_choosing
    assert later.keys() <= first.keys()
    for kept, ratio in proposed.items():
        known = [found[kept] for found in (first, later) if kept in found]
        assert min(known) <= ratio <= max(known)


def timings(database: Path) -> dict[tuple[int, ...], float]:
    """Each plan's ratio, by its kept channels; of enough calls, all of them."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as plans:
        found = plans.execute("SELECT widths, ratio, candidate FROM measurement").fetchall()
    least = FEWEST * LOADS * MIN_ROUNDS
    assert all(len(Samples.from_bytes(candidate)) >= least for *_, candidate in found)
    return {tuple(json.loads(widths).values()): ratio for widths, ratio, _ in found}


def test_every_stage_left_a_record_and_two_events(whole_run: Done) -> None:
    assert stages_run(events(whole_run.folder)) == list(STAGES)
    finished = [e["stage"] for e in events(whole_run.folder) if e["event"] == "stage finished"]
    assert finished == list(STAGES)
    assert not list(whole_run.folder.glob("*.partial"))


def test_same_command_again_does_nothing(whole_run: Done, certificate: dict[str, Any]) -> None:
    if certificate["verdict"] == "inconclusive":
        pytest.skip("the machine was too loud for a verdict, and would be measured again")
    before = {p: p.stat().st_mtime_ns for p in whole_run.folder.rglob("*") if p.is_file()}
    started = time.perf_counter()
    project = whole_run.folder.parents[1]
    command = ("run", "--config", "plan.toml", "--out", "runs/tiny")
    code, stdout, stderr = finish(start(*command, cwd=project))
    seconds = time.perf_counter() - started
    assert code == whole_run.code
    said = [line for line in stderr.splitlines() if line.endswith("done before, nothing changed")]
    assert [line.partition(":")[0] for line in said] == list(STAGES)
    assert "verdict" in stdout
    assert "bundle" in stdout
    after = {p: p.stat().st_mtime_ns for p in whole_run.folder.rglob("*") if p.is_file()}
    assert {p.name for p in after if after[p] != before.get(p)} <= {"run.toml", ".lock"}
    assert seconds < 10  # the whole run takes longer on any machine, this a third of a second


def test_what_was_inconclusive_is_measured_on_by_the_same_command(
    run_until: Callable[[str], Path],
) -> None:
    folder = run_until("verify")
    few = ("--processes", "3", "--cold-starts", "0", "--no-counterfactual")  # 5 make a verdict
    command = ("verify", folder, "--json", *few)
    first = invoke(*command)
    assert (first.exit_code, json.loads(first.stdout)["verdict"]) == (3, "inconclusive")
    before = json.loads((folder / "verify/blocks.json").read_text())["blocks"]
    second = invoke(*command)
    assert second.exit_code == EXIT_CODES[json.loads(second.stdout)["verdict"]]
    after = json.loads((folder / "verify/blocks.json").read_text())["blocks"]
    for name in ("engine", "dense"):
        assert len(before[name]) == 3
        assert after[name][:3] == before[name]
        assert len(after[name]) == 6


@pytest.mark.parametrize(
    ("flags", "first"),
    [(("--finetune-epochs", "1"), "finetune"), (("--budget", "0.85x"), "prune")],
)
def test_changed_option_reruns_its_stage_and_later_ones(
    run_until: Callable[[str], Path], whole_run: Done, flags: tuple[str, str], first: str
) -> None:
    folder = run_until("package")
    shutil.copytree(whole_run.folder / "package", folder / "package")
    shutil.copytree(whole_run.folder / "bundle", folder / "bundle")
    result = invoke("run", "--out", folder, "--json", *flags)
    assert result.exit_code == EXIT_CODES[json.loads(result.stdout)["verdict"]], result.stderr
    assert stages_run(events(folder)) == list(STAGES[STAGES.index(first) :])
    assert Bundle.open(folder / "bundle").certificate == json.loads(result.stdout)


@pytest.mark.parametrize(
    ("stage", "files"),
    [
        ("prepare", ("dense.safetensors",)),
        ("trace", ("groups.json", "skeleton.onnx", "feasibility.json")),
        ("finetune", ("weights.safetensors",)),
        ("export", ("model.onnx", "dense.onnx")),
        ("build", ("engine.onnx", "dense.onnx")),
    ],
)
def test_stage_alone_gives_the_same_as_in_a_run(
    run_until: Callable[[str], Path], whole_run: Done, stage: str, files: tuple[str, ...]
) -> None:
    """To the bit, in another process; calibrate, prune and verify measure, and vary."""
    folder = run_until(stage)
    result = invoke(stage, folder, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"run": str(folder), "stages": [stage]}
    for file in files:
        assert sha256(folder / stage / file) == sha256(whole_run.folder / stage / file)


def test_stages_one_by_one_make_a_whole_run(project: Path) -> None:
    """On the target whose latencies are a formula, so that the verdict is certain."""
    settings = {**SETTINGS, "calibrate": {**SETTINGS["calibrate"], "target": "fake"}}
    write_plan(project / "plan.toml", settings)
    for stage in STAGES:
        result = invoke(stage, "runs/tiny", "--config", "plan.toml", "--json")
        assert (result.exit_code, result.stderr) == (0, "")
    again = invoke("run", "--out", "runs/tiny", "--config", "plan.toml", "--json")
    assert stages_run(events(project / "runs/tiny")) == list(STAGES)
    assert again.stdout == result.stdout
    assert json.loads(again.stdout)["verdict"] == "met"
    assert Bundle.open(project / "runs/tiny/bundle").manifest.name == "tiny"


@pytest.mark.parametrize("stage", ["trace", "prune", "export", "verify"])
def test_report_on_a_run_that_is_not_finished(
    run_until: Callable[[str], Path], whole_run: Done, stage: str
) -> None:
    folder = run_until(stage)
    result = invoke("report", folder)
    assert (result.exit_code, result.stdout) == (0, f"{folder / 'report.html'}\n"), result.stderr
    partial = (folder / "report.html").read_text(encoding="utf-8")
    assert "digits.py:small" in partial
    whole = (whole_run.folder / "bundle" / "report.html").read_text(encoding="utf-8")
    assert len(partial) < len(whole)
    failed = invoke("report", folder, "--out", folder / "no" / "where.html")
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: cannot write where.html: No such file or directory")
