"""Building: a full disk is told from a model that the runtime refused."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pipeline.errors import BuildError, DeployError
from pipeline.stages.common import build_engine
from targets.base import BuildRecord, TargetOptions
from targets.fake import FakeTarget


class Refusing(FakeTarget):
    def build(self, *_: object, **__: object) -> BuildRecord:
        raise BuildError("the runtime refused the model")


def test_refusal_stays_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="refused the model"):
        build_engine(Refusing(TargetOptions()), b"model", tmp_path / "engine.bin")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DeployError, match=r"cannot write engine\.bin: No space left") as caught:
        build_engine(Refusing(TargetOptions()), b"model", tmp_path / "engine.bin")
    assert "free the disk" in caught.value.fix
    assert list(tmp_path.iterdir()) == []
