"""Disks that are full or read-only: one clear line, nothing half-written, then it carries on."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import Done
from .project import STAGES, complaint_of, invoke

RunUntil = Callable[[str], Path]
# a run's latency samples take 10 to 20 MiB, more the more often neighbours disturb the machine
DISK_BYTES = 128 * 2**20


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel lets no file grow beyond `size` bytes: a write fails halfway, as on a full disk.

    Unlike a full disk it needs no rights and hits every writer: Python, safetensors, SQLite, ORT.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("stage", "size", "file"),
    [
        ("prepare", 30, "run.toml"),
        ("prepare", 20_000, "best.safetensors"),
        ("trace", 3_000, "trace.partial"),
        ("calibrate", 5_000, "anchor.onnx"),
        ("calibrate", 500_000, "latency.sqlite"),
        ("prune", 100_000, "latency.sqlite"),
        ("finetune", 20_000, "pruned.safetensors"),
        ("export", 20_000, "dense.onnx"),
        ("build", 20_000, "dense.onnx"),
        ("verify", 20_000, "dense-ort-cpu-int8.onnx"),
        ("package", 20_000, "engine.onnx"),
    ],
)
def test_write_that_fails_halfway(run_until: RunUntil, stage: str, size: int, file: str) -> None:
    folder = run_until(stage)
    kept = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".jsonl"}
    command = (stage, folder, "--json")
    with largest_file(size):
        message, _ = complaint_of(invoke(*command))
    assert file in message
    assert not (folder / stage).exists()
    assert not (folder / "bundle").exists()
    assert {p: p.read_bytes() for p in kept} == kept
    # 1 and 3 are verdicts of the noisy machine; a stage that failed leaves no record
    assert invoke(*command).exit_code in ((0, 1, 3) if stage in ("verify", "package") else (0,))
    assert (folder / stage / "stage.json").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of its own, with room for one small run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", disk]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        pytest.skip(f"NOT TESTED ON A FULL DISK: {missing}")
    if mounted.returncode:
        pytest.skip(f"NOT TESTED ON A FULL DISK: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("stage", ["calibrate", "finetune", "build"])
def test_full_disk(run_until: RunUntil, small_disk: Path, stage: str) -> None:
    folder = Path(shutil.move(run_until(stage), small_disk))
    command = (stage, folder, "--json")
    free = shutil.disk_usage(small_disk).free
    (small_disk / "other").write_bytes(bytes(free - 40_000))
    message, fix = complaint_of(invoke(*command))
    assert "No space left on device" in message or "database or disk is full" in message
    assert "free the disk" in fix
    assert not (folder / stage).exists()
    (small_disk / "other").unlink()
    again = invoke(*command)
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("stage", ["prepare", "finetune"])
def test_read_only_disk(run_until: RunUntil, small_disk: Path, stage: str) -> None:
    folder = Path(shutil.move(run_until(stage), small_disk))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    message, fix = complaint_of(invoke(stage, folder, "--json"))
    assert "Read-only file system" in message
    assert str(folder) in message
    assert fix == "use a folder on a disk that can be written"


def test_folder_without_the_right_to_write(project: Path) -> None:
    # in /sys nobody may make a folder, root included
    message, fix = complaint_of(invoke("run", "--out", "/sys/wgates-run", "--json"))
    assert message.startswith("cannot use the run folder /sys/wgates-run: ")
    assert "another folder" in fix or "a disk that can be written" in fix


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_run_folder_that_became_read_only(run_until: RunUntil) -> None:
    folder = run_until("finetune")
    folder.chmod(0o500)
    message, _ = complaint_of(invoke("finetune", folder, "--json"))
    assert "Permission denied" in message


def test_out_is_a_file(project: Path) -> None:
    result = invoke("run", "--out", "plan.toml", "--json")
    assert result.exit_code == 2
    assert "'plan.toml' is a file" in result.stderr
    for path in ("plan.toml", "plan.toml/run"):
        message, fix = complaint_of(invoke("prepare", path, "--json"))
        assert message.startswith(f"cannot use the run folder {path}: ")
        assert fix == "give a folder, not a file"


def test_failed_rerun_leaves_the_finished_stage_alone(run_until: RunUntil, whole_run: Done) -> None:
    folder = run_until(STAGES[STAGES.index("finetune") + 1])
    before = (folder / "finetune" / "weights.safetensors").read_bytes()
    with largest_file(20_000):
        complaint_of(invoke("finetune", folder, "--finetune-epochs", "1", "--json"))
    assert (folder / "finetune" / "weights.safetensors").read_bytes() == before
