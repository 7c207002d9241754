"""A bundle verified and certified again, on the target whose latency is a formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pipeline.bundle import Bundle, write_bundle
from pipeline.cli import main
from pipeline.reference import Reference, noise
from targets import load_target
from targets.base import TargetOptions, TritonServing
from targets.fake import FakeTarget

from .test_bundle import SHAPE, manifest_of, tiny_model

OPTIONS = TargetOptions(batch=1, threads=2)
FAST = ("--processes", "5", "--block-seconds", "0.01")


def make(
    folder: Path,
    *,
    change: float = 0.0,
    extra: dict[str, bytes] | None = None,
    certified: dict[str, Any] | None = None,
    **manifest: Any,
) -> Path:
    """A bundle whose torch said what the engine says, but for `change`; `certified`: what its
    certificate states otherwise."""
    folder.mkdir(parents=True)
    target, model = load_target("fake", OPTIONS), tiny_model().SerializeToString()
    engine = target.build(model, folder.parent / "engine.json").engine
    made = manifest_of(**manifest)
    pixels = noise(SHAPE)
    with target.load(engine) as loaded:
        logits = loaded.infer(Reference(pixels, *2 * (np.zeros(0),)).images(made.mean, made.std))
        latency = float(np.median(loaded.time_ms(5).ms))
    reference = Reference(pixels, logits + np.float32(change), logits)
    certificate = {
        "schema": 1,
        "target": "fake",
        "fingerprint": made.fingerprint,
        "verdict": "met",
        "budget_ms": 2 * latency,
        "percentile": "p50",
        "latency_ms": {"engine": {"p50": latency / 2}},
        "engine_bytes": {"dense": 10, "pruned": engine.stat().st_size},
        **(certified or {}),
    }
    files: dict[str, Path | bytes] = {
        "engine.json": engine,
        "model.onnx": model,
        "certificate.json": json.dumps(certificate).encode(),
        "reference.safetensors": reference.to_bytes(),
    }
    write_bundle(folder, made, {**files, **(extra or {})})
    return folder


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make(tmp_path / "made" / "bundle")


def test_a_bundle_is_verified_where_it_lies(bundle: Path) -> None:
    result = invoke("verify", bundle, *FAST)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["differences"] == []
    assert found["parity"]["label_flips"] == 0
    assert found["parity"]["max_rel_to_certified"] == 0
    assert found["accuracy"] is None
    assert found["verdict"] == "met"
    assert found["change"] == pytest.approx(1.0, abs=0.01)  # certified as half of what it is
    assert not found["signed"]


def test_what_differs_from_the_certificate_is_said(tmp_path: Path) -> None:
    here = load_target("fake", OPTIONS).fingerprint().to_json()
    made = make(tmp_path / "made" / "bundle", fingerprint={**here, "runtime": "fake 0"})
    found = json.loads(invoke("verify", made, *FAST).stdout)
    assert found["differences"] == ["runtime: fake 0 != fake 1"]


def test_an_engine_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path / "made" / "bundle", change=0.5)
    result = invoke("verify", made, *FAST)
    assert result.exit_code == 1
    assert "engine and torch differ by" in result.stderr
    assert invoke("verify", made, *FAST, "--engine-tolerance", "1").exit_code == 0


def test_a_damaged_bundle_is_not_run(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"other")
    result = invoke("verify", bundle, *FAST)
    assert result.exit_code == 1
    assert "'model.onnx' has 5 bytes" in result.stderr


def test_an_unsigned_bundle_is_refused_where_a_key_is_given(bundle: Path, tmp_path: Path) -> None:
    assert invoke("keygen", tmp_path / "key").exit_code == 0
    refused = invoke("verify", bundle, "--key", tmp_path / "key.pub", *FAST)
    assert (refused.exit_code, "not signed" in refused.stderr) == (1, True)
    assert invoke("sign", bundle, "--key", tmp_path / "key").exit_code == 0
    found = invoke("verify", bundle, "--key", tmp_path / "key.pub", *FAST)
    assert json.loads(found.stdout)["signed"]


def test_recertify_measures_anew_and_keeps_the_old_engine(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    result = invoke("recertify", bundle, "--out", out, *FAST)
    assert result.exit_code == 0, result.stderr
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    new = Bundle.open(out)
    certificate = new.certificate
    assert certificate == json.loads(result.stdout)
    assert certificate["verdict"] == "met"
    assert certificate["previous"]["median"] == pytest.approx(1.0)
    assert certificate["latency_ms"]["dense"]["p50"] is None
    assert any("accuracy" in doubt for doubt in certificate["doubts"])
    old = Bundle.open(bundle)
    assert new.read("previous/engine.json") == old.read("engine.json")
    assert new.read("previous/certificate.json") == old.read("certificate.json")
    changes = json.loads(new.read("recertification.json"))
    assert changes["latency_ms.engine.p50"]["was"] == pytest.approx(
        changes["latency_ms.engine.p50"]["is"] / 2, rel=0.01
    )
    assert "target" not in changes


def test_recertify_makes_tritons_warnings_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = TritonServing("fake", doubts=("of this machine",))
    monkeypatch.setattr(FakeTarget, "triton", lambda _: serving)
    config = b'# of that machine\nname: "tiny"\n'
    triton = {"triton/tiny/config.pbtxt": config, "triton/tiny/1/model.json": b"old"}
    made = make(tmp_path / "made" / "bundle", extra=triton)
    result = invoke("recertify", made, "--out", tmp_path / "new", *FAST)
    assert result.exit_code == 0, result.stderr
    new = Bundle.open(tmp_path / "new")
    fixed, doubt, name = new.read("triton/tiny/config.pbtxt").decode().splitlines()
    assert "exactly 1 image" in fixed
    assert (doubt, name) == ("# of this machine", 'name: "tiny"')
    assert new.read("triton/tiny/1/model.json") == new.read(new.manifest.engine)


@pytest.mark.parametrize("command", ["verify", "recertify"])
@pytest.mark.parametrize(
    ("certified", "message"),
    [
        ({"budget_ms": 1e-6}, "misses the certified budget of 0.000 ms here"),
        ({"budget_ms": None, "verdict": "missed"}, "misses the certified budget\n"),
    ],
)
def test_a_missed_budget_is_the_exit_code(
    tmp_path: Path, command: str, certified: dict[str, Any], message: str
) -> None:
    made = make(tmp_path / "made" / "bundle", certified=certified)
    out = tmp_path / "again"
    flags = ("--out", out) if command == "recertify" else ()
    result = invoke(command, made, *flags, *FAST)
    assert result.exit_code == 1
    assert message in result.stderr
    assert json.loads(result.stdout)["verdict"] == "missed"
    if command == "recertify":
        assert Bundle.open(out).certificate["verdict"] == "missed"


def test_recertify_twice_keeps_one_previous(bundle: Path, tmp_path: Path) -> None:
    assert invoke("recertify", bundle, "--out", tmp_path / "b", *FAST).exit_code == 0
    assert invoke("recertify", tmp_path / "b", "--out", tmp_path / "c", *FAST).exit_code == 0
    names = set(Bundle.open(tmp_path / "c").manifest.files)
    assert {name for name in names if name.startswith("previous/")} == {
        "previous/engine.json",
        "previous/certificate.json",
        "previous/manifest.json",
    }


def test_recertify_writes_nothing_over_what_is_there(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    result = invoke("recertify", bundle, "--out", tmp_path / "there", *FAST)
    assert result.exit_code == 1
    assert "there is there already" in result.stderr
    failed = make(tmp_path / "other" / "bundle", change=0.5)
    assert invoke("recertify", failed, "--out", tmp_path / "new", *FAST).exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "other", "there"]


def test_what_is_of_a_bundle_only_is_refused_of_a_run(tmp_path: Path) -> None:
    result = invoke("verify", tmp_path, "--data", "digits")
    assert result.exit_code == 2
    assert "--data is of a bundle only" in result.stderr


def test_the_watchdog_of_a_run_is_calibrates(tmp_path: Path) -> None:
    refused = CliRunner().invoke(main, ["verify", str(tmp_path / "run"), "--watchdog", "1"])
    assert "--watchdog is of a bundle only" in refused.stderr
    taken = CliRunner().invoke(main, ["calibrate", str(tmp_path / "run"), "--watchdog", "1"])
    assert "pipeline prepare" in taken.stderr  # which is what is missing
