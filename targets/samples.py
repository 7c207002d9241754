"""`Samples`: timed calls with the evidence of what disturbed them."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

# below this share of undisturbed calls, choosing only those would be choosing a few lucky ones
MIN_CLEAN_SHARE = 0.25
MAX_SPREAD = 0.10  # interquartile range over median
MAX_STEAL_SHARE = 0.02
MIN_CALL_MS = 0.02  # of a shorter call, Python's own few us are a large share

_HEADER = struct.Struct("<4sIqqq")  # magic, CRC-32 of all that follows it, calls, steal, throttled
_MAGIC = b"WGS1"
_COLUMNS = ("wall_ns", "cpu_ns", "involuntary_switches")


@dataclass(frozen=True, eq=False)
class Samples:
    """Timed calls in order, as arrays of equal length (n,), int64."""

    wall_ns: NDArray[np.int64]  # what the caller waited
    cpu_ns: NDArray[np.int64]  # what all threads of the process computed meanwhile
    involuntary_switches: NDArray[np.int64]  # how often the kernel preempted any of them
    steal_ticks: int = 0  # taken by the hypervisor from the whole machine, over all calls
    throttled_us: int = 0  # held back by the control group's quota, over all calls

    def __post_init__(self) -> None:
        for name in _COLUMNS:
            object.__setattr__(self, name, _frozen(name, getattr(self, name)))
        if len({len(getattr(self, name)) for name in _COLUMNS}) != 1:
            raise ValueError("the columns of Samples differ in length")
        if self.steal_ticks < 0 or self.throttled_us < 0:
            raise ValueError("counters of Samples must not be negative")

    def __len__(self) -> int:
        return len(self.wall_ns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Samples) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @property
    def ms(self) -> NDArray[np.float64]:
        """Wall time of all calls in ms, (n,)."""
        return self.wall_ns / 1e6

    @property
    def clean(self) -> NDArray[np.bool_]:
        """Which calls ran without being preempted, (n,)."""
        return np.equal(self.involuntary_switches, 0)

    @property
    def is_mostly_disturbed(self) -> bool:
        """Whether too few calls are clean to rely on those alone."""
        return bool(np.count_nonzero(self.clean) < MIN_CLEAN_SHARE * len(self))

    @property
    def clean_ms(self) -> NDArray[np.float64]:
        """Wall time of the clean calls in ms; of all calls when fewer than 25 % are clean."""
        return self.ms if self.is_mostly_disturbed else self.ms[self.clean]

    def doubts(self) -> tuple[str, ...]:
        """Reasons to distrust these samples, in words; empty if none."""
        if not len(self):
            return ("there are no samples",)
        found: list[str] = []
        if self.is_mostly_disturbed:
            clean = np.count_nonzero(self.clean)
            found.append(f"only {clean} of {len(self)} calls ran undisturbed, so all are used")
        if self.throttled_us:
            found.append(
                f"the CPU quota held the process back for {self.throttled_us / 1e3:.1f} ms"
            )
        steal_s = self.steal_ticks / os.sysconf("SC_CLK_TCK")
        if steal_s * 1e9 > MAX_STEAL_SHARE * int(self.wall_ns.sum()):
            found.append(f"the hypervisor took {steal_s:.2f} s of CPU time")
        return (*found, *_shape_doubts(self.clean_ms))

    @classmethod
    def concatenate(cls, parts: Iterable[Samples]) -> Self:
        """All calls of all parts, in order; counters add up."""
        kept = list(parts)
        columns = {
            name: np.concatenate([np.empty(0, np.int64), *(getattr(part, name) for part in kept)])
            for name in _COLUMNS
        }
        return cls(
            **columns,
            steal_ticks=sum(part.steal_ticks for part in kept),
            throttled_us=sum(part.throttled_us for part in kept),
        )

    def split(self, calls: int) -> tuple[Samples, ...]:
        """Successive pieces of `calls` calls; the counters of all calls belong to no one piece."""
        return tuple(
            Samples(**{name: getattr(self, name)[start : start + calls] for name in _COLUMNS})
            for start in range(0, len(self), calls)
        )

    def to_json(self) -> dict[str, Any]:
        """A dict that `json.dumps` accepts."""
        columns = {name: getattr(self, name).tolist() for name in _COLUMNS}
        return {**columns, "steal_ticks": self.steal_ticks, "throttled_us": self.throttled_us}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; ValueError if the record is anything else."""
        expected = {*_COLUMNS, "steal_ticks", "throttled_us"}
        if set(record) != expected:
            raise ValueError(f"samples have the fields {sorted(expected)}, not {sorted(record)}")
        columns = {name: np.asarray(record[name] or np.empty(0, np.int64)) for name in _COLUMNS}
        return cls(
            **columns,
            steal_ticks=int(record["steal_ticks"]),
            throttled_us=int(record["throttled_us"]),
        )

    def to_bytes(self) -> bytes:
        """Header and columns as little-endian int64, 24 bytes a call, for storage."""
        counters = struct.pack("<qqq", len(self), self.steal_ticks, self.throttled_us)
        columns = (getattr(self, name).astype("<i8").tobytes() for name in _COLUMNS)
        body = counters + b"".join(columns)
        return _MAGIC + struct.pack("<I", zlib.crc32(body)) + body

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """The inverse of `to_bytes`; ValueError if the bytes are damaged or anything else."""
        if len(blob) < _HEADER.size:
            raise ValueError(f"stored samples are cut short: {len(blob)} bytes")
        magic, crc, calls, steal_ticks, throttled_us = _HEADER.unpack_from(blob)
        if magic != _MAGIC:
            raise ValueError(f"these are no stored samples: they begin with {magic!r}")
        expected = _HEADER.size + 8 * len(_COLUMNS) * calls
        if calls < 0 or len(blob) != expected:
            raise ValueError(f"stored samples have {len(blob)} bytes where {expected} belong")
        if zlib.crc32(blob[8:]) != crc:
            raise ValueError("stored samples are damaged: their checksum differs")
        stored = np.frombuffer(blob, "<i8", offset=_HEADER.size).reshape(len(_COLUMNS), calls)
        columns = dict(zip(_COLUMNS, stored, strict=True))
        return cls(**columns, steal_ticks=steal_ticks, throttled_us=throttled_us)


def _frozen(name: str, values: ArrayLike) -> NDArray[np.int64]:
    """A read-only copy of (n,) whole numbers, none negative."""
    given = np.asarray(values)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise ValueError(f"{name} must be a list of whole numbers, not {given.dtype} {given.shape}")
    copied = given.astype(np.int64)
    if len(copied) and copied.min() < 0:
        raise ValueError(f"{name} must not be negative")
    copied.setflags(write=False)
    return copied


def _shape_doubts(values_ms: NDArray[np.float64]) -> tuple[str, ...]:
    """Doubts from the spread and size of the times themselves."""
    q25, median, q75 = np.quantile(values_ms, (0.25, 0.5, 0.75))
    found: list[str] = []
    if q75 - q25 > MAX_SPREAD * median:
        found.append(f"the middle half of the calls spreads over {(q75 - q25) / median:.0%}")
    if median < MIN_CALL_MS:
        found.append(f"a call of {median * 1e3:.1f} us is so short that Python's own share counts")
    return tuple(found)
