"""Bundles of a real runtime certified anew, in the precisions that need images to be built."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pipeline.bundle import Bundle, Manifest, write_bundle
from pipeline.cli import main
from pipeline.errors import DeployError
from pipeline.options import VerifyOptions
from pipeline.recertify import recertify
from pipeline.recheck import recheck_of
from pipeline.reference import REFERENCE, Reference, noise
from pipeline.report import render_report
from pipeline.unfused import run_onnx
from targets import load_target
from targets.base import TargetOptions
from tests.targets.tiny_onnx import CLASSES, IMAGE, tiny_model

from .test_report import Page

SHAPE = (2, *IMAGE)
FAST = ("--processes", "5", "--block-seconds", "0.02")
TARGETS = ("ort-cpu-int8", "openvino-cpu-fp16")
DATA = '''
import numpy as np


def small():
    """Images of which no two are alike."""
    random = np.random.default_rng(0)
    splits = {}
    for name, count in (("train", 40), ("val", 10), ("test", 20)):
        images = random.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
        splits[name] = (images, np.arange(count) % 5)
    return {**splits, "classes": list("abcde")}
'''


def needed(name: str) -> None:
    """Skips, and says so, where the target cannot run."""
    if reasons := load_target(name, TargetOptions(batch=2, threads=1)).is_available():
        pytest.skip(f"{name} was NOT certified again here: {'; '.join(reasons)}")


def bundle_of(folder: Path, name: str, *, kept: Sequence[str] = ()) -> Path:
    """A bundle of a target, whose certificate is ten times too slow and of another runtime."""
    target = load_target(name, TargetOptions(batch=2, threads=1))
    random, model = np.random.default_rng(1), tiny_model()
    batches = [random.standard_normal(SHAPE).astype(np.float32) for _ in range(8)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    out = folder.with_name(f"engine{target.engine_suffix}")
    engine = target.build(model, out, batches, keep_fp32=kept).engine
    pixels, mean, std = noise(SHAPE), (0.5,) * 3, (0.3,) * 3
    images = Reference(pixels, *2 * (np.zeros(0, np.float32),)).images(mean, std)
    with target.load(engine) as loaded:
        logits, latency = loaded.infer(images), float(np.median(loaded.time_ms(20).ms))
    fingerprint = {**target.fingerprint().to_json(), "runtime": "an older one"}
    certificate = {
        "schema": 1,
        "model": "tiny",
        "target": name,
        "fingerprint": fingerprint,
        "verdict": "met",
        "budget": "1000ms",
        "budget_ms": 1000.0,
        "percentile": "p50",
        "latency_ms": {
            "engine": {"p50": 10 * latency, "ci95": [9 * latency, 11 * latency]},
            "predicted": {"p50": 10 * latency, "ci95": [9 * latency, 11 * latency]},
        },
        "accuracy": {"dense": {"top1": 0.5, "n": 20, "ci95": [0.3, 0.7]}},
        "build": {"kept_fp32": list(kept), "range_images": 32},
    }
    manifest = Manifest(
        name="tiny",
        wgates="0.1.0",
        created="2026-01-02T03:04:05+00:00",
        target=name,
        threads=1,
        batch=2,
        options={},
        precision=target.precision,
        input_shape=SHAPE,
        mean=mean,
        std=std,
        classes=tuple("abcde"),
        engine=engine.name,
        fingerprint=fingerprint,
    )
    files: dict[str, Path | bytes] = {
        engine.name: engine,
        "model.onnx": model,
        "certificate.json": json.dumps(certificate).encode(),
        "reference.safetensors": Reference(pixels, run_onnx(model, images), logits).to_bytes(),
        "report.html": b"the report of the run",
    }
    folder.mkdir()
    write_bundle(folder, manifest, files)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> str:
    (tmp_path / "images.py").write_text(DATA)
    return f"{tmp_path / 'images.py'}:small"


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", TARGETS)
def test_a_bundle_of_low_precision_is_built_and_certified_again(
    tmp_path: Path, data: str, name: str
) -> None:
    needed(name)
    old = bundle_of(tmp_path / "old" / "bundle", name)
    out = tmp_path / "new"
    result = invoke("recertify", old, "--out", out, "--data", data, *FAST)
    assert result.exit_code == 0, result.stderr
    new = Bundle.open(out)
    certificate = new.certificate
    assert certificate["verdict"] == "met"
    assert certificate["fingerprint"]["runtime"] != "an older one"
    assert certificate["accuracy"]["engine"]["n"] == 20
    assert certificate["accuracy"]["dense"]["n"] == 20  # as it was certified
    assert certificate["latency_ms"]["predicted"]["p50"] is None  # that was another machine's
    assert certificate["previous"]["median"] == pytest.approx(1.0, abs=0.5)
    assert certificate["parity"]["max_rel"] <= certificate["parity"]["tolerance"]
    assert certificate["build"]["builds"] == []  # those were of the engine before
    reference = Reference.from_bytes(new.read(REFERENCE))
    with new.load() as engine:
        said = engine.infer(reference.images(new.manifest.mean, new.manifest.std)[:2])
    assert np.allclose(said, reference.engine[:2], atol=1e-5)
    previous = f"previous/{Bundle.open(old).manifest.engine}"
    assert new.read(previous) == Bundle.open(old).read(Bundle.open(old).manifest.engine)
    with new.load() as engine:
        assert engine.infer(np.zeros(SHAPE, np.float32)).shape == (2, CLASSES)
    page = Page(new.read("report.html").decode())
    _, median, *_ = page.tables["comparison"]
    assert float(median[1].split()[0]) == pytest.approx(
        Bundle.open(old).certificate["latency_ms"]["engine"]["p50"], rel=1e-3
    )
    assert float(median[2].split()[0]) == pytest.approx(
        certificate["latency_ms"]["engine"]["p50"], rel=1e-3
    )
    runtime = certificate["fingerprint"]["runtime"]
    assert ["runtime", "an older one", runtime] in page.tables["set-up"]
    assert render_report(out) == new.read("report.html").decode()


def test_nodes_that_stay_in_fp32_stay_there(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed("ort-cpu-int8")
    asked: list[Any] = []
    old = bundle_of(tmp_path / "old" / "bundle", "ort-cpu-int8", kept=("conv1",))
    recheck = recheck_of(Bundle.open(old), VerifyOptions(processes=5, block_seconds=0.02), data)
    build = recheck.target.build

    def listening(*given: Any, **options: Any) -> Any:
        asked.append((len(np.concatenate(given[2])), options["keep_fp32"]))
        return build(*given, **options)

    monkeypatch.setattr(recheck.target, "build", listening)
    recertify(recheck, tmp_path / "new")
    assert asked == [(32, ["conv1"])]


@pytest.mark.parametrize("name", TARGETS)
def test_low_precision_is_not_built_without_images(tmp_path: Path, name: str) -> None:
    needed(name)
    old = bundle_of(tmp_path / "old" / "bundle", name)
    result = invoke("recertify", old, "--out", tmp_path / "new", *FAST)
    assert result.exit_code == 1
    assert f"error: {name} is built with training images" in result.stderr
    assert "--data SPEC" in result.stderr
    assert not (tmp_path / "new").exists()


def test_images_of_other_classes_are_refused(tmp_path: Path, data: str) -> None:
    needed("ort-cpu-int8")
    (tmp_path / "images.py").write_text(DATA.replace("abcde", "vwxyz"))
    old = bundle_of(tmp_path / "old" / "bundle", "ort-cpu-int8")
    recheck = recheck_of(Bundle.open(old), VerifyOptions(), data)
    with pytest.raises(DeployError, match="are not the engine's"):
        recertify(recheck, tmp_path / "new")
    assert not (tmp_path / "new").exists()
