"""A fresh process that fails says how, with what to do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from targets.errors import EngineError
from targets.fresh import ask_fresh_process


def ends(code: int, stderr: str) -> Callable[..., Any]:
    return lambda command, **_: subprocess.CompletedProcess(command, code, "", stderr)


@pytest.mark.parametrize(
    ("code", "stderr", "told", "fix"),
    [
        (-9, "", "ended by SIGKILL", "memory"),
        (3, "", "exit status 3", "run the same command again"),
        (1, "a warning\nthe engine failed\n", "failed: the engine failed", "mend that"),
    ],
)
def test_how_it_ended_is_told_with_a_fix(
    monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, told: str, fix: str
) -> None:
    monkeypatch.setattr(subprocess, "run", ends(code, stderr))
    with pytest.raises(EngineError, match=told) as caught:
        ask_fresh_process("targets.blocks", {}, limit_s=1, name="timing")
    assert caught.value.message.startswith("the timing process failed: ")
    assert fix in caught.value.fix
