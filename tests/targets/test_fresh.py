"""A fresh process answers message by message; one that fails says how, with what to do."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from targets.errors import EngineError
from targets.fresh import FreshProcess

MODULE = "served"
ANSWERS = """
import os, signal, sys, time
from targets.errors import EngineError
from targets.fresh import serve_messages

def answer(message):
    if "print" in message:
        os.write(1, b"a library's words\\n")
        print("more of them")
    if message.get("say"):
        sys.stderr.write(message["say"])
        sys.stderr.flush()
    if "exit" in message:
        sys.exit(message["exit"])
    if "kill" in message:
        os.kill(os.getpid(), signal.SIGKILL)
    if "sleep" in message:
        time.sleep(message["sleep"])
    if "fail" in message:
        raise EngineError(message["fail"], fix="mend the\\nengine")
    return {"pid": os.getpid(), **message}

sys.exit(serve_messages(answer))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / f"{MODULE}.py").write_text(ANSWERS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return MODULE


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_answers_in_order_until_the_block_ends(module: str) -> None:
    with FreshProcess(module, name="test") as process:
        first = process.ask({"n": 1, "print": True}, 30)
        process.tell({"n": 2})
        process.tell({"n": 3})
        assert [process.answer(30)["n"] for _ in range(2)] == [2, 3]
        assert first["n"] == 1
        assert is_alive(first["pid"])
    assert not is_alive(first["pid"])


def test_an_error_in_the_block_ends_it_at_once(module: str) -> None:
    with suppress(KeyboardInterrupt), FreshProcess(module, name="test") as process:
        pid = process.ask({}, 30)["pid"]
        process.tell({"sleep": 3600})
        raise KeyboardInterrupt
    assert not is_alive(pid)


@pytest.mark.parametrize(
    ("message", "told", "fix"),
    [
        ({"kill": True}, "ended by SIGKILL", "memory"),
        ({"say": "a warning\n", "kill": True}, "ended by SIGKILL, after: a warning", "memory"),
        ({"exit": 3}, "exit status 3", "run the same command again"),
        ({"exit": 1, "say": "a warning\nthe engine failed\n"}, "the engine failed", "mend that"),
        ({"fail": "damaged"}, r"damaged \(mend the engine\)", "mend that"),
    ],
)
def test_how_it_ended_is_told_with_a_fix(
    module: str, message: dict[str, object], told: str, fix: str
) -> None:
    with FreshProcess(module, name="timing") as process:
        with pytest.raises(EngineError, match=f"^the timing process failed: {told}") as caught:
            process.ask(message, 30)
        assert fix in caught.value.fix
        with pytest.raises(EngineError, match="^the timing process failed: "):
            process.ask({}, 30)  # nobody is there to read it


def test_one_that_does_not_answer_is_given_up(module: str) -> None:
    with FreshProcess(module, name="timing") as process:
        pid = process.ask({}, 30)["pid"]
        with pytest.raises(EngineError, match="the timing process did not answer within 1 s"):
            process.ask({"sleep": 60}, 1)
    assert not is_alive(pid)
