from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from targets.errors import EngineError
from targets.files import read_sealed, replacing, write_sealed, write_whole


@dataclass(frozen=True)
class Header:
    target: str
    batch: int
    isa: tuple[str, ...]


@dataclass(frozen=True)
class Later:
    target: str
    colour: str


HEADER = Header("any", 8, ("avx2", "fma"))
PARTS = {"zebra": b"ftrt" + bytes(range(256)) * 20, "empty": b"", "apple": b"<net/>"}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    write_sealed(tmp_path / "a.engine", HEADER, PARTS)
    return tmp_path / "a.engine"


def test_header_and_parts_come_back_in_order(sealed: Path) -> None:
    header, parts = read_sealed(sealed, Header)
    assert header == HEADER
    assert list(parts.items()) == list(PARTS.items())


@pytest.mark.parametrize(
    ("kept", "reason"),
    [(0, "foreign"), (5, "cut short"), (40, "cut short"), (300, "cut short"), (-1, "cut short")],
)
def test_a_truncated_file_says_so(sealed: Path, kept: int, reason: str) -> None:
    sealed.write_bytes(sealed.read_bytes()[:kept])
    with pytest.raises(EngineError, match=reason) as refused:
        read_sealed(sealed, Header)
    assert refused.value.fix == "build it again here: pipeline build"


@pytest.mark.parametrize("position", [20, 60, 120, 400, -2000, -1])
def test_one_changed_bit_is_found(sealed: Path, position: int) -> None:
    content = bytearray(sealed.read_bytes())
    content[position] ^= 1
    sealed.write_bytes(content)
    with pytest.raises(EngineError, match="damaged"):
        read_sealed(sealed, Header)


def test_bytes_added_at_the_end_are_found(sealed: Path) -> None:
    sealed.write_bytes(sealed.read_bytes() + b"x")
    with pytest.raises(EngineError, match="damaged"):
        read_sealed(sealed, Header)


@pytest.mark.parametrize("content", [b"GARBAGE!" * 20, b"{}", PARTS["zebra"]])
def test_another_file_is_foreign(sealed: Path, content: bytes) -> None:
    sealed.write_bytes(content)
    with pytest.raises(EngineError, match="is foreign"):
        read_sealed(sealed, Header)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"absent\.engine: No such file"):
        read_sealed(tmp_path / "absent.engine", Header)


def test_the_engine_of_another_runtime_is_foreign(sealed: Path) -> None:
    with pytest.raises(EngineError, match="foreign, or of another version: batch, colour, isa"):
        read_sealed(sealed, Later)


def test_writing_leaves_one_file(sealed: Path) -> None:
    write_whole(sealed, b"a", b"b")
    assert sealed.read_bytes() == b"ab"
    assert list(sealed.parent.iterdir()) == [sealed]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(sealed: Path) -> None:
    before = sealed.read_bytes()

    def fail() -> None:
        with replacing(sealed) as partial:
            partial.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert sealed.read_bytes() == before
    assert list(sealed.parent.iterdir()) == [sealed]
