from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from targets.errors import EngineError
from targets.openvino_file import EngineFile, Stamp

CONTENT = EngineFile(
    Stamp("openvino-cpu", "2026.4.1-1-abc", "f32", ("avx2", "fma")),
    blob=b"blob" * 100,
    xml=b"<net/>",
    weights=b"",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    CONTENT.write(tmp_path / "tiny.ovblob")
    return tmp_path / "tiny.ovblob"


def test_what_is_written_is_read(path: Path) -> None:
    assert EngineFile.read(path) == CONTENT
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("kept", "reason"), [(0, "foreign"), (5, "cut short"), (40, "cut short"), (-1, "cut short")]
)
def test_a_truncated_file_says_so(path: Path, kept: int, reason: str) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(EngineError, match=reason) as refused:
        EngineFile.read(path)
    assert refused.value.fix == "build it again here: pipeline build"


@pytest.mark.parametrize("position", [20, 60, 120, 400, -1])
def test_one_changed_byte_is_found(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(EngineError, match="damaged"):
        EngineFile.read(path)


def test_bytes_added_at_the_end_are_found(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(EngineError, match="damaged"):
        EngineFile.read(path)


@pytest.mark.parametrize("content", [b"GARBAGE!" * 20, b"{}", b"\x08\x0a"])
def test_another_file_is_foreign(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(EngineError, match="is foreign"):
        EngineFile.read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"absent\.ovblob: No such file"):
        EngineFile.read(tmp_path / "absent.ovblob")


def test_a_stamp_with_other_fields_is_of_another_version(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_more(entry: dict[str, object]) -> str:
        return encode({**entry, "stamp": {"target": "openvino-cpu", "colour": "red"}})

    encode = json.dumps
    monkeypatch.setattr("targets.openvino_file.json.dumps", with_more)
    CONTENT.write(path)
    with pytest.raises(EngineError, match="stamp of another version"):
        EngineFile.read(path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        replace(CONTENT, blob=b"").write(path)
    assert list(path.parent.iterdir()) == [path]
    assert EngineFile.read(path) == CONTENT
