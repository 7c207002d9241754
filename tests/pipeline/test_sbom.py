"""The bill of materials is held to CycloneDX's own schema."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from pipeline.sbom import bill_of_materials


@pytest.fixture(scope="module")
def text() -> str:
    return bill_of_materials("engine.onnx", "ab" * 32, "2026-01-02T03:04:05+00:00").decode()


@pytest.fixture(scope="module")
def bom(text: str) -> dict[str, Any]:
    return json.loads(text)


def test_it_is_valid_by_the_strict_schema(text: str, bom: dict[str, Any]) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    wrong = {**bom, "components": [{"type": "library"}]}  # a component needs a name
    assert validator.validate_str(json.dumps(wrong)) is not None


def test_it_names_what_is_installed(bom: dict[str, Any]) -> None:
    found = {item["name"]: item for item in bom["components"]}
    for name in ("numpy", "onnx", "wgates"):
        assert found[name]["version"] == version(name)
        assert found[name]["purl"] == f"pkg:pypi/{name}@{version(name)}"


def test_it_is_about_the_engine(bom: dict[str, Any]) -> None:
    engine = bom["metadata"]["component"]
    assert (engine["name"], engine["type"]) == ("engine.onnx", "machine-learning-model")
    assert engine["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    assert bom["metadata"]["timestamp"] == "2026-01-02T03:04:05+00:00"


def test_it_tells_nothing_about_the_machine(text: str) -> None:
    assert "file:" not in text
    assert "://" not in text.replace('"$schema": "http://cyclonedx.org', "")
