"""One whole run for all tests of this folder, which work on copies of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from .project import STAGES, finish, start, write_project


class Done(NamedTuple):
    """What one command left and said."""

    folder: Path
    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Done:
    project = tmp_path_factory.mktemp("project")
    write_project(project)
    command = ("run", "--config", "plan.toml", "--out", "runs/tiny", "--json")
    return Done(project / "runs" / "tiny", *finish(start(*command, cwd=project)))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without a run; it is the working directory."""
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_until(whole_run: Done, project: Path) -> Callable[[str], Path]:
    """run_until(stage) -> a run folder in which that stage is the next to do."""

    def copy(stage: str) -> Path:
        folder = project / "run"
        folder.mkdir()
        shutil.copy2(whole_run.folder / "run.toml", folder)
        for done in STAGES[: STAGES.index(stage)]:
            shutil.copytree(whole_run.folder / done, folder / done)
        return folder

    return copy


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the commands' own processes, so that sums agree bit by bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
