"""A call that never comes back ends the process in words; one that comes back changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
