"""Which engines a check takes, and which it refuses to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.bundle import Manifest, write_bundle
from pipeline.check.sides import BuildWish, image_size_of, open_sides
from pipeline.errors import (
    BuildError,
    BundleError,
    DeployError,
    FingerprintError,
    TargetUnavailableError,
)
from targets import load_target
from targets.base import TargetOptions
from tests.targets.tiny_onnx import tiny_model


def wish(folder: Path, target: str | None = "fake", **changes: Any) -> BuildWish:
    return BuildWish(**({"target": target, "threads": 1, "folder": folder} | changes))


def bundle_of(folder: Path, **changes: Any) -> Path:
    """A bundle of the fake target, batch 2, one thread; its certificate is a budget of 1 ms."""
    target = load_target("fake", TargetOptions(batch=2, threads=1))
    folder.mkdir()
    engine = target.build(tiny_model(), folder.with_suffix(".json")).engine
    values: dict[str, Any] = {
        "name": folder.name,
        "wgates": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "target": "fake",
        "threads": 1,
        "options": {},
        "batch": 2,
        "precision": "fp32",
        "input_shape": (2, 3, 8, 8),
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "classes": tuple("abcde"),
        "engine": "engine.json",
        "fingerprint": target.fingerprint().to_json(),
    }
    certificate = b'{"schema": 1, "budget": "1ms", "budget_ms": 1.0, "percentile": "p50"}'
    files: dict[str, Path | bytes] = {
        "engine.json": engine,
        "certificate.json": changes.pop("certificate", certificate),
        "model.onnx": tiny_model(),
    }
    write_bundle(folder, Manifest(**(values | changes)), files)
    return folder


def test_onnx_files_are_built_for_the_target(networks: dict[str, Path], tmp_path: Path) -> None:
    sides = open_sides(networks["other"], networks["base"], wish(tmp_path, threads=3))
    assert sides.target.name == "fake"
    assert sides.target.options == TargetOptions(batch=2, threads=3)
    assert sides.baseline is not None
    assert (sides.candidate.name, sides.baseline.name) == ("other.onnx", "base.onnx")
    assert set(sides.engines()) == {"candidate", "baseline"}
    for engine in sides.engines().values():
        sides.target.load(engine).close()
    assert sides.candidate.sha256 != sides.baseline.sha256
    assert sides.candidate.certificate is None
    assert sides.candidate.certified_elsewhere(sides.target.fingerprint()) == ()


def test_a_bundle_brings_its_own_target(networks: dict[str, Path], tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle")
    for pair in ((bundle, networks["base"]), (networks["base"], bundle), (bundle, bundle)):
        sides = open_sides(*pair, wish(tmp_path, None, threads=7))
        assert sides.target.options == TargetOptions(batch=2, threads=1)
    alone = open_sides(bundle, None, wish(tmp_path, None))
    assert alone.baseline is None
    assert set(alone.engines()) == {"candidate"}
    assert alone.candidate.certificate is not None


def test_where_a_bundle_was_certified_elsewhere_it_is_said(tmp_path: Path) -> None:
    here = load_target("fake", TargetOptions(batch=2, threads=1)).fingerprint()
    bundle = bundle_of(tmp_path / "bundle", fingerprint=here.to_json() | {"device": "old"})
    side = open_sides(bundle, None, wish(tmp_path, None)).candidate
    assert side.certified_elsewhere(here) == ("device: old != none",)
    foreign = bundle_of(tmp_path / "foreign", fingerprint={"device": "old"})
    side = open_sides(foreign, None, wish(tmp_path, None)).candidate
    with pytest.raises(BundleError, match="fingerprint"):
        side.certified_elsewhere(here)


def test_unlike_set_ups_are_refused(networks: dict[str, Path], tmp_path: Path) -> None:
    one = bundle_of(tmp_path / "one")
    two = bundle_of(tmp_path / "two", threads=2)
    with pytest.raises(FingerprintError, match="threads 1.*threads 2"):
        open_sides(one, two, wish(tmp_path, None))
    with pytest.raises(FingerprintError, match="of target fake, not of ort-cpu"):
        open_sides(one, networks["base"], wish(tmp_path, "ort-cpu"))
    (tmp_path / "four.onnx").write_bytes(tiny_model(batch=4))
    with pytest.raises(FingerprintError, match="different batches: 2 and 4"):
        open_sides(networks["base"], tmp_path / "four.onnx", wish(tmp_path))


def test_what_cannot_be_built_says_what_to_do(networks: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DeployError) as error:
        open_sides(networks["base"], None, wish(tmp_path, None))
    assert "--target" in error.value.fix
    with pytest.raises(TargetUnavailableError, match="no target 'nowhere'"):
        open_sides(networks["base"], None, wish(tmp_path, "nowhere"))
    with pytest.raises(BuildError, match="int8") as built:
        open_sides(networks["base"], None, wish(tmp_path, "ort-cpu-int8"))
    assert "--data" in built.value.fix
    (tmp_path / "text.onnx").write_text("this is no ONNX")
    with pytest.raises(BuildError):
        open_sides(tmp_path / "text.onnx", None, wish(tmp_path))
    with pytest.raises(BundleError):
        open_sides(tmp_path, None, wish(tmp_path))


def test_image_size_is_that_of_the_network(networks: dict[str, Path], tmp_path: Path) -> None:
    assert image_size_of(networks["base"]) == 8
    assert image_size_of(bundle_of(tmp_path / "square")) == 8
    with pytest.raises(BuildError, match="8 by 9 pixels"):
        image_size_of(bundle_of(tmp_path / "oblong", input_shape=(2, 3, 8, 9)))
