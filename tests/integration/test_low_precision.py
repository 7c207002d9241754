"""The line on targets whose precision must be earned: int8 and fp16 on this CPU."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from calibration.skeleton import Skeleton
from calibration.widths import WidthVector
from pipeline.bundle import Bundle
from pipeline.data.sources import load_data
from pipeline.report import render_report
from targets import load_target
from targets.base import TargetOptions

from .project import finish, invoke, start

VERDICTS = {"met": 0, "missed": 1, "inconclusive": 3}


def halved(folder: Path) -> Path:
    """A plan file that keeps the first half of each group's channels.

    What a loop chooses hangs on timing, and whether int8 loses an image on what it chooses.
    """
    skeleton = Skeleton.open(folder / "trace")
    full = skeleton.groups.full()
    widths = WidthVector(full.groups, tuple(kept // 2 for kept in full.kept))
    path = folder.parent / "halved.json"
    plan = skeleton.groups.first_channels(widths, skeleton.sha256)
    path.write_text(json.dumps(plan.to_json()), encoding="utf-8")
    return path


def run_on(target: str, folder: Path, *flags: str) -> dict[str, object]:
    """The certificate of a run that goes on from `folder` on another target, at half its widths.

    Its budget is a count: how much faster half the widths are in int8 hangs on the CPU.
    """
    if reasons := load_target(target, TargetOptions()).is_available():
        pytest.skip("; ".join(reasons))
    given = ("--config", "plan.toml", "--out", folder.name, "--json", "--target", target)
    plan = ("--plan", halved(folder).name, "--objective", "flops")
    process = start("run", *given, *plan, *flags, cwd=folder.parent)
    code, stdout, stderr = finish(process)
    assert code in (0, 1, 3), stderr
    assert stdout, stderr
    certificate: dict[str, object] = json.loads(stdout)
    assert code == VERDICTS[str(certificate["verdict"])], stderr
    return certificate


@pytest.mark.parametrize(
    ("target", "served"),
    [
        ("ort-cpu-int8", {"model.onnx"}),
        ("openvino-cpu-fp16", {"model.xml", "model.bin"}),
    ],
)
def test_the_whole_line(target: str, served: set[str], run_until: Callable[[str], Path]) -> None:
    folder = run_until("calibrate")
    certificate = run_on(target, folder)
    fingerprint = certificate["fingerprint"]
    assert isinstance(fingerprint, dict)
    assert (certificate["target"], fingerprint["precision"]) == (target, target.split("-")[-1])

    precision = json.loads((folder / "build" / "build.json").read_text())["precision"]
    assert precision["engine"]["n"] > 0
    assert precision["engine"]["top1_loss"] <= 0.01 + 1e-9
    assert "nodes kept in fp32" in render_report(folder)

    bundle = Bundle.open(folder / "bundle")
    assert {name.rsplit("/")[-1] for name in bundle.manifest.files if "/1/" in name} == served
    images, labels = next(load_data("digits.py:small").batches("test", 80))
    with bundle.load() as engine:
        right = (engine.infer(images.numpy()).argmax(1) == labels.numpy()).mean()
    accuracy = certificate["accuracy"]
    assert isinstance(accuracy, dict)
    assert right == pytest.approx(accuracy["engine"]["top1"])


@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="nncf is not installed")
def test_both_int8_forms_are_measured_and_the_choice_holds(
    run_until: Callable[[str], Path],
) -> None:
    folder = run_until("calibrate")
    run_on("openvino-cpu-int8", folder)
    settled = json.loads((folder / "calibrate" / "precision.json").read_text())
    assert [form["quantizer"] for form in settled["forms"]] == ["qdq", "nncf"]
    assert all(form["ratio"] > 0 for form in settled["forms"])
    chosen = settled["quantizer"]
    for stage, file in (("calibrate", "calibration.json"), ("verify", "certificate.json")):
        fingerprint = json.loads((folder / stage / file).read_text())["fingerprint"]
        assert f"quantizer={chosen}" in fingerprint["settings"]
    assert Bundle.open(folder / "bundle").manifest.options == {"quantizer": chosen}
    assert "(chosen)" in render_report(folder)


def test_a_form_that_the_target_does_not_know_is_refused(
    run_until: Callable[[str], Path],
) -> None:
    folder = run_until("calibrate")
    for target, words in (("openvino-cpu-int8", "nncf"), ("ort-cpu-int8", "--quantizer")):
        result = invoke("calibrate", folder, "--target", target, "--quantizer", "gptq")
        assert result.exit_code == 1
        assert words in result.stderr


def test_a_loss_that_is_not_allowed_stops_before_anything_is_measured(
    run_until: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_until("calibrate")
    monkeypatch.setattr("pipeline.stages.precision._Trials._top1", lambda *_: next(shares))
    shares = iter([0.9] + [0.5] * 100)  # fp32, then every int8 engine
    result = invoke("calibrate", folder, "--target", "ort-cpu-int8", "--samples", "9")
    assert result.exit_code == 1, result.stderr
    assert "loses 40.00% of top-1" in result.stderr
    assert "--precision-loss" in result.stderr
    assert not (folder / "calibrate").exists()
