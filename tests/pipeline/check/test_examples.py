"""The workflows in examples/ci: their commands are run as they stand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli import main
from tests.targets.tiny_onnx import tiny_model

from .conftest import noisy

CI = Path(__file__).parents[3] / "examples" / "ci"
HOST = re.compile(r"\b[\w-]+\.(com|org|io|net|dev)\b")


def strings(node: Any) -> Iterable[str]:
    """Every text in a YAML document."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)


def commands(name: str) -> list[list[str]]:
    """The words of each call of `pipeline`, with its variables set."""
    document = yaml.safe_load((CI / name).read_text())
    lines = [line for text in strings(document) for line in text.splitlines()]
    calls = [line[line.index("pipeline check") :] for line in lines if "pipeline check" in line]
    values = {"$MODEL": "model.onnx", '${ACCEPT:+--accept "$ACCEPT"}': "", "|| code=$?": ""}
    for shell, value in values.items():
        calls = [call.replace(shell, value) for call in calls]
    return [shlex.split(call)[1:] for call in calls]


@pytest.mark.parametrize("name", ["github.yml", "gitlab.yml"])
def test_the_workflow_calibrates_and_checks(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured: Callable[[Iterable[float]], list[str]],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    for folder in ("candidate", "baseline", "."):
        Path(folder).mkdir(exist_ok=True)
        Path(folder, "model.onnx").write_bytes(tiny_model())
    measured(noisy(1.0, 0.003))
    calibrate, check = commands(name)
    done = CliRunner().invoke(main, calibrate)
    assert done.exit_code == 0, done.output
    assert Path("latency/noise.json").exists()
    done = CliRunner().invoke(main, check)
    assert done.exit_code == 0, done.output
    assert "calibrate" not in done.stdout
    files = ("latency.xml", "latency.html", "latency/history.jsonl", "latency/badge.svg")
    for written in (*files, "summary.md"):
        assert Path(written).exists(), written
    measured(noisy(1.2, 0.003))
    assert CliRunner().invoke(main, check).exit_code == 1
    accepted = CliRunner().invoke(main, [*check, "--accept", "why"])
    assert accepted.exit_code == 0, accepted.output


@pytest.mark.parametrize("name", ["github.yml", "gitlab.yml", "README.md"])
def test_no_host_is_named(name: str) -> None:
    assert HOST.findall((CI / name).read_text()) == []
