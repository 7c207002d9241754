"""Where an image's bytes lie: a file of its own, or a piece of a tar shard."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast, overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Member:
    """`size` bytes of a shard from `offset` on; it opens like a path."""

    shard: Path
    offset: int
    size: int
    suffix: str

    def open(self, mode: str = "rb") -> BinaryIO:
        """The bytes as a file, read as they are asked for."""
        assert mode == "rb"
        return cast("BinaryIO", io.BufferedReader(_Piece(self)))

    def __str__(self) -> str:
        return f"{self.shard}, the image at byte {self.offset}"


Place = Path | Member


def place_in(root: Path, place: Place) -> str:
    """The place's name relative to the data's root."""
    if isinstance(place, Member):
        return f"{place.shard.relative_to(root).as_posix()}@{place.offset}"
    return place.relative_to(root).as_posix()


class Members(Sequence[Member]):
    """Many members as a few arrays, which a million images need."""

    def __init__(
        self,
        shards: Sequence[Path],
        shard: NDArray[np.int32],
        spans: NDArray[np.int64],
        suffixes: NDArray[np.str_],
    ) -> None:
        """Per image: its shard's number (n,), offset and size (n, 2), and suffix (n,)."""
        self._shards, self._shard, self._spans, self._suffixes = shards, shard, spans, suffixes

    def __len__(self) -> int:
        return len(self._shard)

    @overload
    def __getitem__(self, index: int) -> Member: ...
    @overload
    def __getitem__(self, index: slice) -> Members: ...
    def __getitem__(self, index: int | slice) -> Member | Members:
        if isinstance(index, slice):
            return self.part(np.arange(len(self))[index])
        offset, size = self._spans[index].tolist()
        shard = self._shards[int(self._shard[index])]
        return Member(shard, offset, size, str(self._suffixes[index]))

    def part(self, indices: NDArray[np.int64]) -> Members:
        """The members at these indices, in their order."""
        return Members(
            self._shards, self._shard[indices], self._spans[indices], self._suffixes[indices]
        )


class _Piece(io.RawIOBase):
    """A member's bytes as a read-only file."""

    def __init__(self, member: Member) -> None:
        super().__init__()
        self._member, self._at = member, 0
        self._file = member.shard.open("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._member.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        left = max(0, self._member.size - self._at)
        view = memoryview(buffer)[: min(len(buffer), left)]
        self._file.seek(self._member.offset + self._at)
        count = self._file.readinto(view) or 0
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
