"""Stage and Run: one folder a run, one folder a stage, nothing half-written under a final name."""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from calibration.widths import dump
from pipeline.errors import DeployError, MissingInputError

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
                self._merge(_read_toml(source), source.name)
        for name, stage in self.stages.items():
            wanted = {f.name: flags[f.name] for f in fields(stage.options) if f.name in flags}
            self._options[name] = stage.options(**{**asdict(self._options[name]), **wanted})
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(known, _to_toml(self._options).encode())

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
            typed = {k: Path(v) if "Path" in str(known[k].type) else v for k, v in values.items()}
            self._options[section] = self.stages[section].options(
                **{**asdict(self._options[section]), **typed}
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process a run folder; a second is refused with the holder's pid."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a+") as file:
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
            yield

    # files --------------------------------------------------------------------------------

    def read(self, stage: str, file: str) -> Path:
        """A file that an earlier stage wrote; MissingInputError names the command to run."""
        path = self.folder / stage / file
        if not path.exists():
            raise MissingInputError(
                f"{self.folder.name} has no {stage}/{file} yet", fix=f"run: pipeline {stage} RUN"
            )
        return path

    def document(self, stage: str, file: str) -> Any:
        return json.loads(self.read(stage, file).read_text(encoding="utf-8"))

    def event(self, kind: str, **values: Any) -> None:
        """Append one line to `events.jsonl`."""
        line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **values}
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")

    # stages -------------------------------------------------------------------------------

    def is_fresh(self, stage: Stage) -> bool:
        """Whether the stage was finished with these options and these inputs."""
        record = self.folder / stage.name / RECORD
        published = all((self.folder / name).exists() for name in stage.publishes)
        return published and record.exists() and _load(record) == self._key(stage)

    def execute(self, stage: Stage, reporter: Reporter) -> bool:
        """Run the stage unless it is fresh; returns whether it ran."""
        if self.is_fresh(stage):
            reporter.say(f"{stage.name}: done before, nothing changed")
            return False
        for need in stage.needs:
            self.read(need, RECORD)
        partial = self._open_partial(stage)
        self.event("stage started", stage=stage.name)
        stage.execute(Context(self, stage, partial, reporter))
        final = self.folder / stage.name
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        for name in stage.publishes:  # what the layout wants beside the stages' folders
            published = self.folder / name
            if published.exists():
                shutil.rmtree(published)
            (final / name).rename(published)
        self.event("stage finished", stage=stage.name)
        return True

    def _open_partial(self, stage: Stage) -> Path:
        """The stage's working folder; what a killed run left there is used if it still applies."""
        partial = self.folder / f"{stage.name}.partial"
        key = self._key(stage)
        if partial.exists() and _load(partial / RECORD) != key:
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        write_atomically(partial / RECORD, dump(key).encode())
        return partial

    def _key(self, stage: Stage) -> dict[str, Any]:
        """What the stage's result depends on: its options and the records of what it reads."""
        needs = {
            need: hashlib.sha256((self.folder / need / RECORD).read_bytes()).hexdigest()
            for need in stage.needs
            if (self.folder / need / RECORD).exists()
        }
        options = {k: _plain(v) for k, v in asdict(self._options[stage.name]).items()}
        return {"stage": stage.name, "options": options, "needs": needs}


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


def write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename: nobody ever sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DeployError(
            f"cannot write {path.name}: {error.strerror}", fix="free the disk and run it again"
        ) from error


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeployError(f"{path} is not readable TOML: {error}") from error


def _to_toml(options: Mapping[str, Any]) -> str:
    lines = ["# every option as resolved: flag beats file beats default; absent means unset"]
    for section, values in options.items():
        lines.append(f"\n[{section}]")
        for key, value in asdict(values).items():
            if value is not None:
                lines.append(f"{key} = {json.dumps(_plain(value))}")
    return "\n".join(lines) + "\n"
