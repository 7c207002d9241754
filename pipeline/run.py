"""Stage and Run: one folder a run, one folder a stage, nothing half-written under a final name."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from calibration.widths import dump
from pipeline.budget import Budget, contradiction
from pipeline.errors import DeployError, MissingInputError, loader_faults_told
from pipeline.files import (
    append_line,
    digest,
    digests,
    disk_faults_told,
    json_in,
    named_file,
    remove_unfinished,
    replace_folder,
    write_atomically,
)
from pipeline.options import PruneOptions, complaint
from pipeline.toml import plain, read_toml, to_toml

RECORD = "stage.json"
OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class Stage:
    """One step of the line: sub-command, TOML section and folder share its name."""

    name: str
    needs: tuple[str, ...]
    options: type
    entry: str  # "module:function", imported on use so that --help needs no torch
    produces: str  # in one line, for --help
    publishes: tuple[str, ...] = ()  # folders moved into the run folder itself when done
    schema: int = 0  # of what it writes, if that ever changed; what has another is written again
    is_open: Callable[[Path], bool] = lambda folder: False  # of its folder: done, but to go on

    def execute(self, context: Context) -> None:
        module, _, function = self.entry.partition(":")
        work = cast("Callable[[Context], None]", getattr(importlib.import_module(module), function))
        work(context)


class Reporter(Protocol):
    """Where a stage says how far it is; the command line draws it."""

    def progress(self, label: str, done: int, total: int, note: str = "") -> None: ...
    def say(self, text: str) -> None: ...


class Run:
    """A run folder: resolved options, events, and what each stage wrote."""

    def __init__(self, folder: Path, stages: Mapping[str, Stage]) -> None:
        self.folder, self.stages = folder, stages
        self._options: dict[str, Any] = {name: stage.options() for name, stage in stages.items()}
        self._settled: set[str] = set()  # stages that are known to be of today
        self.memo: dict[Any, Any] = {}  # what a process need not read twice, such as decoded images

    # options ------------------------------------------------------------------------------

    def options(self, stage: str, kind: type[OptionsT]) -> OptionsT:
        found = self._options[stage]
        assert isinstance(found, kind)
        return found

    def resolve(self, flags: Mapping[str, Any], file: Path | None = None) -> None:
        """Flag beats file beats what this run used before beats default; kept in `run.toml`."""
        known = self.folder / "run.toml"
        for source in (known if known.exists() else None, file):
            if source is not None:
                self._merge(read_toml(source), source.name)
        for name, stage in self.stages.items():
            wanted = {f.name: flags[f.name] for f in fields(stage.options) if f.name in flags}
            self._options[name] = stage.options(**{**asdict(self._options[name]), **wanted})
            _check_together(self._options[name])
        with disk_faults_told(f"cannot use the run folder {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(known, to_toml(self._options).encode())

    def _merge(self, document: Mapping[str, Any], source: str) -> None:
        for section, values in document.items():
            if section not in self.stages or not isinstance(values, dict):
                raise DeployError(
                    f"{source}: [{section}] is no stage", fix=f"stages: {', '.join(self.stages)}"
                )
            known = {f.name: f for f in fields(self.stages[section].options)}
            if unknown := sorted(set(values) - set(known)):
                raise DeployError(
                    f"{source}: [{section}] has no option {unknown[0]!r}",
                    fix=f"it has: {', '.join(known)}",
                )
            for key, value in values.items():
                if reason := complaint(self.stages[section].options, key, value):
                    raise DeployError(
                        f"{source}: [{section}] {key} = {value!r} will not do: {reason}",
                        fix=f"{key}: {known[key].metadata['help']}",
                    )
            typed = {k: Path(v) if "Path" in str(known[k].type) else v for k, v in values.items()}
            self._options[section] = self.stages[section].options(
                **{**asdict(self._options[section]), **typed}
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process a run folder; a second is refused with the holder's pid."""
        with disk_faults_told(f"cannot use the run folder {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("a+")
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise DeployError(
                    f"another process (pid {file.read().strip() or '?'}) works on {self.folder}",
                    fix="wait for it, or use another --out",
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            remove_unfinished(self.folder, below=False)
            yield

    # files --------------------------------------------------------------------------------

    def read(self, stage: str, file: str) -> Path:
        """A file that an earlier stage wrote; MissingInputError names the command to run."""
        path = self.folder / stage / file
        if not path.exists():
            raise MissingInputError(
                f"{self.folder} has no {stage}/{file} yet",
                fix=f"run: pipeline {stage} {self.folder}",
            )
        return path

    def document(self, stage: str, file: str) -> Any:
        """A JSON file that an earlier stage wrote."""
        try:
            return json.loads(self.read(stage, file).read_text(encoding="utf-8"))
        except (RecursionError, ValueError) as error:
            raise MissingInputError(
                f"{stage}/{file} is damaged: {error}",
                fix=f"remove {self.folder / stage} and run: pipeline {stage} {self.folder}",
            ) from error

    def event(self, kind: str, **values: Any) -> None:
        """Append one line to `events.jsonl`."""
        line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **values}
        text = json.dumps(line, ensure_ascii=False, default=str)
        append_line(self.folder / "events.jsonl", text)

    # stages -------------------------------------------------------------------------------

    def is_fresh(self, stage: Stage) -> bool:
        """Whether the stage was finished with these options and these inputs."""
        record = self.folder / stage.name / RECORD
        published = all((self.folder / name).exists() for name in stage.publishes)
        return published and self._still_holds(record, stage)

    def execute(self, stage: Stage, reporter: Reporter) -> bool:
        """Run the stage unless it is fresh; returns whether it ran."""
        self._require_fresh(stage)
        if self.is_fresh(stage) and not stage.is_open(self.folder / stage.name):
            reporter.say(f"{stage.name}: done before, nothing changed")
            self._settled.add(stage.name)
            return False
        with self._story(stage), disk_faults_told(f"{stage.name} stopped", self._partial(stage)):
            partial, resumed = self._open_partial(stage)
            self.event("stage started", stage=stage.name, resumed=resumed)
            with loader_faults_told():
                stage.execute(Context(self, stage, partial, reporter))
            self._finish(stage, partial)
            self.event("stage finished", stage=stage.name)
        self._settled = {stage.name, *stage.needs}  # what reads it is not
        return True

    def _require_fresh(self, stage: Stage) -> None:
        """MissingInputError unless all that the stage reads, however far back, is of today."""
        for need in stage.needs:
            self.read(need, RECORD)
            if need in self._settled:
                continue
            self._require_fresh(self.stages[need])
            if not self.is_fresh(self.stages[need]):
                raise MissingInputError(
                    f"{self.folder / need} was made before its options or what it reads changed",
                    fix=f"run: pipeline {need} {self.folder}",
                )
            self._settled.add(need)

    @contextmanager
    def _story(self, stage: Stage) -> Iterator[None]:
        """A stage that fails or is interrupted says so in the events; one that is killed cannot."""
        try:
            yield
        except (DeployError, KeyboardInterrupt) as error:
            reason = error.message if isinstance(error, DeployError) else "interrupted"
            with suppress(OSError):  # on a full disk even this fails
                self.event("stage failed", stage=stage.name, reason=reason)
            raise

    def _finish(self, stage: Stage, partial: Path) -> None:
        """Give everything its final name; the record comes last, so a kill only repeats this."""
        record = {**self._key(stage), "wrote": digests(partial, without=RECORD)}
        write_atomically(partial / RECORD, dump(record).encode())
        for name in stage.publishes:  # what the layout wants beside the stages' folders
            replace_folder(partial / name, self.folder / name)
        replace_folder(partial, self.folder / stage.name)

    def _partial(self, stage: Stage) -> Path:
        return self.folder / f"{stage.name}.partial"

    def _open_partial(self, stage: Stage) -> tuple[Path, bool]:
        """The stage's working folder, and whether what a killed run left there still applies."""
        partial, key = self._partial(stage), self._key(stage)
        if partial.exists() and not self._still_holds(partial / RECORD, stage):
            shutil.rmtree(partial)
        resumed = partial.exists()
        partial.mkdir(exist_ok=True)
        remove_unfinished(partial)
        write_atomically(partial / RECORD, dump(key).encode())
        return partial, resumed

    def _still_holds(self, record: Path, stage: Stage) -> bool:
        """Whether a record's options and inputs are those of today."""
        found, key = json_in(record), self._key(stage)
        if not isinstance(found, dict):
            return False
        # a file that is gone, as on another machine, has not changed
        key["files"] = {**found.get("files", {}), **key["files"]}
        return {name: value for name, value in found.items() if name != "wrote"} == key

    def _key(self, stage: Stage) -> dict[str, Any]:
        """What the stage's result depends on: its options, the files that they name, and the
        records of what it reads, which hold the digests of all that was written there."""
        needs = {
            need: digest(self.folder / need / RECORD)
            for need in stage.needs
            if (self.folder / need / RECORD).exists()
        }
        chosen = self._options[stage.name]
        settling = {f.name for f in fields(chosen) if f.metadata.get("settles", True)}
        values = {k: v for k, v in asdict(chosen).items() if k in settling}
        options = {k: plain(v) for k, v in values.items()}
        named = {k: named_file(v) for k, v in values.items()}
        files = {k: digest(path) for k, path in named.items() if path is not None}
        schema = {"schema": stage.schema} if stage.schema else {}
        found = {"options": options, "files": files, "needs": needs}
        return {"stage": stage.name, **schema, **found}


@dataclass(frozen=True)
class Context:
    """What a stage works with."""

    run: Run
    stage: Stage
    partial: Path  # its working folder, renamed to its final name when the stage is done
    reporter: Reporter

    def options(self, kind: type[OptionsT]) -> OptionsT:
        return self.run.options(self.stage.name, kind)

    def write_json(self, file: str, document: Any) -> None:
        write_atomically(self.partial / file, dump(document).encode())

    def remembered(self, file: str, find: Callable[[], Any]) -> Any:
        """The JSON of what is found, kept: a run that goes on reads it back and finds nothing."""
        path = self.partial / file
        if not path.exists():
            self.write_json(file, find())
        return json.loads(path.read_text(encoding="utf-8"))

    def earlier(self, file: str) -> Path | None:
        """What the stage wrote before, of the same options and inputs; None if it has changed."""
        path = self.run.folder / self.stage.name / file
        wrote = json_in(path.with_name(RECORD))["wrote"] if self.run.is_fresh(self.stage) else {}
        return path if path.exists() and wrote.get(file) == digest(path) else None


def _check_together(options: Any) -> None:
    """DeployError if options that are fine each do not go together."""
    if isinstance(options, PruneOptions):
        budget = Budget.parse(options.budget)
        if found := contradiction(options.objective, budget, options.percentile):
            raise DeployError(found[0], fix=found[1])
