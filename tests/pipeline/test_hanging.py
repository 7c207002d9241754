"""A call that never comes back ends the process in words; one that comes back changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .test_bundle import tiny_model
from .test_recheck import make

START = """
import ctypes, sys, time
from pathlib import Path
from pipeline import hanging
hanging.GRACE_S = 0.5
note = Path(sys.argv[1])
with hanging.ended_if_it_hangs(
    0.3, "building engine.bin", fix="wait longer", before_the_end=note.write_text
):
    {hang}
print("came back", flush=True)
time.sleep({after})
"""


def run(
    tmp_path: Path, hang: str, after: float = 0.0
) -> tuple[subprocess.CompletedProcess[str], Path]:
    program, note = START.format(hang=hang, after=after), tmp_path / "note"
    command = [sys.executable, "-c", program, str(note)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False), note


def test_a_call_that_hangs_ends_the_process_in_one_line_and_its_fix(tmp_path: Path) -> None:
    ended, note = run(tmp_path, "time.sleep(50)")
    assert ended.returncode == 1
    said = ended.stderr.splitlines()
    assert said[0] == "error: building engine.bin did not come back within 0.005 minutes"
    assert said[1:] == ["  fix: wait longer"]
    assert "building engine.bin did not come back" in note.read_text()


def test_a_call_that_hangs_with_pythons_lock_ends_it_by_a_traceback(tmp_path: Path) -> None:
    ended, note = run(tmp_path, "ctypes.PyDLL(None).sleep(50)")
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "came back" not in ended.stdout
    assert not note.exists()


def test_nothing_ends_a_process_whose_call_came_back(tmp_path: Path) -> None:
    ended, note = run(tmp_path, "time.sleep(0.01)", after=1.2)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "came back\n", "")
    assert not note.exists()


def test_a_note_that_cannot_be_written_does_not_keep_the_process(tmp_path: Path) -> None:
    (tmp_path / "note").mkdir()
    ended, _ = run(tmp_path, "time.sleep(50)")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: building engine.bin")


COMMAND = """
import sys, time
from pipeline.cli import main
from targets.fake import FakeTarget
name, *arguments = sys.argv[1:]
setattr(FakeTarget, name, lambda *args, **more: time.sleep(50))
main(arguments)
"""


def hung(name: str, *arguments: object) -> str:
    """What a command says on the fake target whose method `name` never comes back."""
    command = [sys.executable, "-c", COMMAND, name, *map(str, arguments), "--watchdog", "0.01"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1, ended.stderr
    return ended.stderr


@pytest.mark.parametrize("name", ["build", "load"])
def test_commands_on_bundles_do_not_wait_for_a_runtime_that_hangs(
    tmp_path: Path, name: str
) -> None:
    bundle, out = make(tmp_path / "made" / "bundle"), tmp_path / "new"
    said = hung(name, "recertify", bundle, "--out", out)
    assert "did not come back" in said
    assert "--watchdog" in said
    assert [path.name for path in tmp_path.iterdir()] == ["made"]  # the name is free again
    if name == "load":
        assert "loading engine.json did not come back" in hung(name, "verify", bundle)


def test_a_check_does_not_wait_for_a_runtime_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_model().SerializeToString())
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    said = hung("build", "check", model, "--target", "fake", "--budget", "1ms")
    assert "building candidate.json did not come back" in said
    assert "  fix: " in said
    assert not list((tmp_path / "tmp").iterdir())
