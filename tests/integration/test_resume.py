"""Runs that are killed, interrupted or meet each other: the same command carries on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors

from .project import events, finish, invoke, kill, start, wait_until

RunUntil = Callable[[str], Path]
EPOCHS = 60  # of fine-tuning, more than a busy machine does between two looks


def rows_of(database: Path) -> dict[tuple[str, str], tuple[Any, ...]]:
    """(skeleton, widths) -> when it was measured, and its raw samples."""
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
        found = connection.execute(
            "SELECT skeleton, widths, measured_at, candidate, anchor FROM measurement"
        ).fetchall()
        connection.close()
    except sqlite3.OperationalError:  # not there yet
        return {}
    return {(skeleton, widths): tuple(rest) for skeleton, widths, *rest in found}


def epochs_of(checkpoint: Path) -> list[dict[str, Any]]:
    """The history in a checkpoint; empty if there is none."""
    if not checkpoint.exists():
        return []
    with safetensors.safe_open(checkpoint, "numpy") as file:
        history: list[dict[str, Any]] = json.loads(file.metadata()["training"])["history"]
    return history


def test_killed_calibration_keeps_what_was_measured(run_until: RunUntil) -> None:
    folder = run_until("calibrate")
    command = ("calibrate", folder.name)
    process = start(*command, cwd=folder.parent)
    database = folder / "calibrate.partial" / "latency.sqlite"
    wait_until(lambda: len(rows_of(database)) >= 3, process)
    kill(process)
    before = rows_of(database)
    assert 3 <= len(before) < 24, "it was to be killed in the middle"
    time.sleep(1.1)  # measured_at has seconds
    code, _, stderr = finish(start(*command, cwd=folder.parent))
    assert code == 0, stderr
    after = rows_of(folder / "calibrate" / "latency.sqlite")
    assert len(after) == 24
    assert {key: after[key] for key in before} == before
    last_kept = max(at for at, *_ in before.values())
    assert all(after[key][0] > last_kept for key in after.keys() - before.keys())
    assert not (folder / "calibrate.partial").exists()


def test_more_samples_keep_what_was_measured(run_until: RunUntil) -> None:
    folder = run_until("prune")
    before = rows_of(folder / "calibrate" / "latency.sqlite")
    result = invoke("calibrate", folder, "--samples", "26", "--json")
    assert result.exit_code == 0, result.stderr
    after = rows_of(folder / "calibrate" / "latency.sqlite")
    assert len(after) == 26
    assert {key: after[key] for key in before} == before


def losses_in(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("group-losses.json", "plan-losses.json")]


def test_killed_pruning_repeats_at_most_one_epoch(run_until: RunUntil) -> None:
    folder = run_until("prune")
    command = ("prune", folder.name, "--gate-epochs", "21")
    process = start(*command, cwd=folder.parent)
    checkpoint = folder / "prune.partial" / "gates.checkpoint.safetensors"
    wait_until(lambda: len(epochs_of(checkpoint)) >= 2, process)
    kill(process)
    before = epochs_of(checkpoint)
    assert 2 <= len(before) < 14, "it was to be killed in the middle"
    losses = losses_in(checkpoint.parent)
    code, _, stderr = finish(start(*command, cwd=folder.parent))
    assert code == 0, stderr
    assert f"gates: resumed after epoch {len(before)}\n" in stderr
    history = json.loads((folder / "prune" / "prune.json").read_text())["history"]
    # the seconds of an epoch are those of its one run
    assert [e["seconds"] for e in history[: len(before)]] == [e["seconds"] for e in before]
    assert [e["loss"] for e in history[: len(before)]] == [e["loss"] for e in before]
    assert len(history) >= 21
    # those of the dense network, which the checkpoint's is no more
    assert losses_in(folder / "prune") == losses


def test_groups_losses_serve_other_budgets_of_the_same_channels(run_until: RunUntil) -> None:
    folder = run_until("finetune")
    path = folder / "prune" / "group-losses.json"
    marked = json.dumps({**json.loads(path.read_text()), "marked": True})

    def asked_anew(*flags: str) -> bool:
        path.write_text(marked)
        result = invoke("prune", folder, "--json", *flags)
        assert result.exit_code == 0, result.stderr
        return "marked" not in json.loads(path.read_text())

    assert not asked_anew("--budget", "0.8x", "--gate-epochs", "1")
    assert asked_anew("--worth-images", "64")
    assert asked_anew("--method", "l1")  # keeps others of a group's channels


def test_finetuning_stopped_twice_ends_with_the_weights_of_one_that_was_not(
    run_until: RunUntil,
) -> None:
    folder = run_until("finetune")
    whole = shutil.copytree(folder, folder.with_name("whole"))
    flags = ("--finetune-epochs", str(EPOCHS))
    checkpoint = folder / "finetune.partial" / "finetune.checkpoint.safetensors"

    process = start("finetune", folder.name, *flags, cwd=folder.parent)
    wait_until(lambda: len(epochs_of(checkpoint)) >= 2, process)
    os.killpg(process.pid, signal.SIGINT)
    code, stdout, stderr = finish(process)
    assert code == 130, stderr
    assert "interrupted; the same command resumes" in stderr.splitlines()
    assert "Traceback" not in stderr
    assert stdout == ""
    interrupted = len(epochs_of(checkpoint))

    process = start("finetune", folder.name, *flags, cwd=folder.parent)
    wait_until(lambda: len(epochs_of(checkpoint)) > interrupted, process)
    kill(process)
    killed = len(epochs_of(checkpoint))
    assert interrupted < killed < EPOCHS, "it was to be killed in the middle"

    result = invoke("finetune", folder, *flags)
    assert result.exit_code == 0, result.stderr
    assert f"finetune: resumed after epoch {killed}" in result.stderr.splitlines()
    assert invoke("finetune", whole, *flags).exit_code == 0
    weights = (folder / "finetune" / "weights.safetensors").read_bytes()
    assert weights == (whole / "finetune" / "weights.safetensors").read_bytes()
    histories = [
        json.loads((run / "finetune" / "finetune.json").read_text())["history"]
        for run in (folder, whole)
    ]
    losses = [[epoch["loss"] for epoch in history] for history in histories]
    assert losses[0] == losses[1]
    assert len(losses[0]) == EPOCHS


def test_second_process_is_refused_with_the_pid_of_the_first(run_until: RunUntil) -> None:
    folder = run_until("finetune")
    process = start("finetune", folder.name, "--finetune-epochs", "1000", cwd=folder.parent)
    wait_until((folder / "finetune.partial").exists, process)
    result = invoke("finetune", folder, "--json")
    assert result.exit_code == 1
    message, fix = result.stderr.splitlines()
    assert f"another process (pid {process.pid}) works on {folder}" in message
    assert "--out" in fix
    kill(process)
    # a lock does not outlive its holder
    assert invoke("finetune", folder, "--finetune-epochs", "1").exit_code == 0
    assert events(folder)[-1]["event"] == "stage finished"
