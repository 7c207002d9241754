"""Building: a full disk, a model that the runtime refused, and one that it hangs on."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BuildError, DeployError
from pipeline.run import Context, Run
from pipeline.stages import STAGES
from pipeline.stages.common import build_engine
from targets.base import BuildRecord, TargetOptions
from targets.fake import FakeTarget

from .test_counterfactual import Silent


class Refusing(FakeTarget):
    def build(self, *_: object, **__: object) -> BuildRecord:
        raise BuildError("the runtime refused the model")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    run = Run(tmp_path / "run", STAGES)
    run.resolve({"watchdog": 0.5})
    partial = tmp_path / "partial"
    partial.mkdir()
    return Context(run, STAGES["build"], partial, Silent())


def test_refusal_stays_a_refusal(context: Context) -> None:
    out = context.partial / "engine.bin"
    with pytest.raises(BuildError, match="refused the model"):
        build_engine(context, Refusing(TargetOptions()), b"model", out)
    assert list(context.partial.iterdir()) == []


def test_a_build_that_hangs_ends_the_process_and_the_events_tell_it(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended_at_once(
        limit_s: float, doing: str, *, fix: str, before_the_end: Callable[[str], None]
    ) -> Any:
        before_the_end(f"{doing}: {limit_s} s; {fix}")
        return nullcontext()

    monkeypatch.setattr("pipeline.hanging.ended_if_it_hangs", ended_at_once)
    with pytest.raises(BuildError):
        build_engine(context, Refusing(TargetOptions()), b"model", context.partial / "engine.bin")
    event = json.loads((context.run.folder / "events.jsonl").read_text().splitlines()[-1])
    assert (event["event"], event["stage"]) == ("stage failed", "build")
    more = f"pipeline run --out {context.run.folder} --watchdog MINUTES"
    assert event["reason"] == f"building engine.bin: 30.0 s; if it needs more time: {more}"


def test_full_disk_is_named(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    out = context.partial / "engine.bin"
    with pytest.raises(DeployError, match=r"cannot write engine\.bin: No space left") as caught:
        build_engine(context, Refusing(TargetOptions()), b"model", out)
    assert "free the disk" in caught.value.fix
    assert list(context.partial.iterdir()) == []
