"""`Fault`: one row of the table; `Place`: where it is tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults_project import Project, make_project


@dataclass(frozen=True)
class Place:
    """An empty folder for one trial, and a finished run of each line."""

    folder: Path
    references: Mapping[str, Project]

    def finished(self, target: str) -> Project:
        return self.references[target]

    def project(self, name: str = "project", **environment: str) -> Project:
        """A project without a run."""
        return make_project(self.folder / name, **environment)


Trial = Callable[[Place, int], str]
"""(place, number of the trial) -> what was seen, in a line; SurpriseError, or UntriedError."""


@dataclass(frozen=True)
class Fault:
    """What is done to a run, and what it must do then."""

    key: str
    group: str
    what: str
    expected: str
    trials: int
    try_it: Trial
