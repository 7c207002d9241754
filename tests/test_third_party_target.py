"""A target from an installed package of someone else: found, listed, and held to the contract."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = Path(__file__).parent / "third_party" / "wgates-onnx-reference"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the package is installed, beside what is there already."""
    site = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / PACKAGE.name
    source.mkdir()
    for file in PACKAGE.glob("*.*"):  # pip would leave its build folder beside them
        (source / file.name).write_bytes(file.read_bytes())
    flags = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    run(["-m", "pip", "install", *flags, "--target", str(site), str(source)])
    return {**os.environ, "PYTHONPATH": str(site)}


def run(arguments: list[str], env: dict[str, str] | None = None) -> str:
    """The standard output of a Python process that must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed_beside_ours(installed: dict[str, str]) -> None:
    main = "from pipeline.cli import main; main()"
    found = json.loads(run(["-c", main, "targets", "--json"], installed))
    (ours,) = [item for item in found if item["name"] == "onnx-reference"]
    assert ours["available"]
    assert ours["about"] == "the reference evaluator of the onnx package, fp32."
    assert ours["fingerprint"]["runtime"].startswith("onnx ")


def test_it_passes_the_contract_test(installed: dict[str, str]) -> None:
    required = {**installed, "REQUIRE_TARGETS": "onnx-reference"}
    tests = str(ROOT / "tests" / "test_target_contract.py")
    said = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", tests, "-k", "onnx-ref"], required)
    passed = said.rsplit("\n", 2)[-2]
    assert int(passed.split()[0]) > 20, said
    assert "failed" not in passed
