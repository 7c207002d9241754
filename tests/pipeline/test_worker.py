from __future__ import annotations

import json
import os
import sys

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.worker import start_command

pytest.importorskip("ray", reason="pipeline worker was NOT tested: pip install 'wgates[fleet]'")


def test_a_worker_offers_its_target_once() -> None:
    command = start_command("trt-fp16", "10.0.0.1:6379", 1)
    assert command[:2] == [sys.executable, "-m"]
    assert json.loads(command[command.index("--resources") + 1]) == {"target:trt-fp16": 1}
    assert command[command.index("--address") + 1] == "10.0.0.1:6379"
    assert "--head" not in command


def test_without_an_address_a_new_fleet_starts() -> None:
    command = start_command("fake", None, 6380)
    assert "--head" in command
    assert command[command.index("--port") + 1] == "6380"
    assert "--address" not in command


def test_the_command_becomes_rays_own(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    result = CliRunner().invoke(main, ["worker", "--target", "fake", "--address", "h:1"])
    assert result.exit_code == 0
    assert started == [start_command("fake", "h:1", 6379)]


def test_a_target_that_cannot_run_here_does_not_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.fake.FakeTarget.is_available", lambda _: ("no magic",))
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("joined"))
    result = CliRunner().invoke(main, ["worker", "--target", "fake"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: fake: no magic")
