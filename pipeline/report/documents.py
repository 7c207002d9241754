"""What the stages of a run have written, as far as the run has come."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from pipeline.errors import DeployError, MissingInputError
from pipeline.files import digest, json_in
from pipeline.run import RECORD

Document = dict[str, Any]
PLAIN = re.compile(r"[a-z]+")  # a stage's name, which leads out of no folder

FILES = {
    "prepare": "prepare/prepare.json",
    "data_card": "prepare/data_card.json",
    "trace": "trace/feasibility.json",
    "calibrate": "calibrate/calibration.json",
    "precision": "calibrate/precision.json",
    "prune": "prune/prune.json",
    "losses": "prune/group-losses.json",
    "plan_losses": "prune/plan-losses.json",
    "finetune": "finetune/finetune.json",
    "build": "build/build.json",
    "verify": "verify/certificate.json",
    "latency": "verify/latency.json",
    "flips": "verify/flips.json",
}
STAGES = ("prepare", "trace", "calibrate", "prune", "finetune", "build", "verify")


@dataclass(frozen=True)
class Documents:
    """The JSON documents of a run, by stage; None: that stage has not run."""

    prepare: Document | None = None
    data_card: Document | None = None
    trace: Document | None = None
    calibrate: Document | None = None
    precision: Document | None = None  # of calibrate: int8 forms, nodes in fp32
    prune: Document | None = None
    losses: Document | None = None  # of prune, by group; None too where it did not ask for them
    plan_losses: Document | None = None  # of prune, by whole plan; likewise
    finetune: Document | None = None
    build: Document | None = None
    verify: Document | None = None  # the certificate
    latency: Document | None = None  # clean samples in ms, by engine
    flips: Document | None = None  # test images whose label a step changed

    @classmethod
    def read(cls, folder: Path, only: Collection[str] = tuple(FILES)) -> Self:
        """MissingInputError if no stage has run; DeployError if a document is damaged.

        What was made of a stage that was done anew since counts as not there.
        """
        stages = {name: FILES[name].partition("/")[0] for name in only}
        stale = {stage for stage in set(stages.values()) if _is_stale(folder, stage)}
        found = {
            name: None if stage in stale else _read(folder / FILES[name])
            for name, stage in stages.items()
        }
        if all(document is None for document in found.values()):
            raise MissingInputError(f"{folder} has no results yet", fix="run: pipeline prepare RUN")
        return cls(**found)

    def missing_stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in STAGES if getattr(self, stage) is None)

    def first(self, key: str) -> Any:
        """The value of `key` where the latest stage that states it has it; None if none does."""
        stated = [
            document[key]
            for document in (getattr(self, field.name) for field in fields(self))
            if document is not None and document.get(key) is not None
        ]
        return stated[-1] if stated else None


def _is_stale(folder: Path, stage: str, asked: frozenset[str] = frozenset()) -> bool:
    """Whether something that the stage read, however far back, was written anew since."""
    record = json_in(folder / stage / RECORD)
    needs = record.get("needs") if isinstance(record, dict) else None
    if not isinstance(needs, dict) or stage in asked:
        return False
    return any(
        PLAIN.fullmatch(need) is not None
        and (folder / need / RECORD).is_file()
        and (digest(folder / need / RECORD) != was or _is_stale(folder, need, asked | {stage}))
        for need, was in needs.items()
    )


def _read(path: Path) -> Document | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(document, dict):
        raise _damaged(path, "it is no JSON object")
    return document


def _damaged(path: Path, why: str) -> DeployError:
    stage = path.parent.name
    return DeployError(f"{stage}/{path.name} is damaged: {why}", fix=f"run: pipeline {stage} RUN")
