"""What a person sees: progress bars on a terminal, plain lines in CI, nothing under --json."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

PLAIN_EVERY_S = 10.0  # without a terminal, a line at most this often


class Console:
    """A `Reporter`: one bar for each label, or a line now and then where there is no terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = rich.console.Console(stderr=True, quiet=quiet, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def progress(self, label: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` units of `label` are finished."""
        if self._console.is_terminal:
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, note="")
            self._bars.update(self._tasks[label], completed=done, total=total, note=note)
            return
        now = time.monotonic()
        if done == total or now - self._told.get(label, -PLAIN_EVERY_S) >= PLAIN_EVERY_S:
            self._told[label] = now
            self._console.print(f"{label}: {done}/{total} {note}".rstrip(), soft_wrap=True)

    def say(self, text: str) -> None:
        """One line of text, above the bars."""
        self._console.print(text, soft_wrap=True, markup=False)


def draw_summary(folder: Path, certificate: dict[str, Any]) -> None:
    """The run's result: dense against pruned, the verdict, and where the bundle lies."""
    from pipeline.report import summary_rows

    console = rich.console.Console(highlight=False)
    table = Table(title=Text(f"{certificate['model']} on {certificate['target']}"))
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("pruned", justify="right")
    for label, dense, pruned in summary_rows(certificate):
        table.add_row(label, dense, pruned)
    console.print(table)
    bundle = folder / "bundle"
    if bundle.exists():
        for label, path in (("bundle", bundle), ("report", bundle / "report.html")):
            console.print(f"{label}: {path}", soft_wrap=True, markup=False)
