"""`Samples`: timed calls with the evidence of what disturbed them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from targets.doubts import doubts_of

# below this share of undisturbed calls, choosing only those would be choosing a few lucky ones
MIN_CLEAN_SHARE = 0.25

_ALWAYS = ("wall_ns", "cpu_ns", "involuntary_switches")
_OPTIONAL = ("withheld", "device_ns", "gpu_mhz", "gpu_mw", "gpu_throttle", "gpu_foreign")
_FIELDS = {*_ALWAYS, *_OPTIONAL, "steal_ticks", "throttled_us", "judged"}

# magic, CRC-32 of all that follows it, calls, steal, throttled, which optional columns and clock
_HEADER = struct.Struct("<4sIqqqq")
_MAGIC = b"WGS2"
_JUDGED_BY_DEVICE = 1 << len(_OPTIONAL)  # a flag above those of the optional columns


@dataclass(frozen=True, eq=False)
class Samples:
    """Timed calls in order, as arrays of equal length (n,), int64; None: it was not recorded."""

    wall_ns: NDArray[np.int64]  # what the caller waited
    cpu_ns: NDArray[np.int64]  # what all threads of the process computed meanwhile
    involuntary_switches: NDArray[np.int64]  # how often the kernel preempted any of them
    steal_ticks: int = 0  # taken by the hypervisor from our CPUs, over all calls
    throttled_us: int = 0  # held back by the control group's quota, over all calls
    withheld: NDArray[np.int64] | None = None  # 1: steal or quota took CPU around this call
    device_ns: NDArray[np.int64] | None = None  # what the device itself took
    gpu_mhz: NDArray[np.int64] | None = None  # clock of the multiprocessors
    gpu_mw: NDArray[np.int64] | None = None  # power
    gpu_throttle: NDArray[np.int64] | None = None  # NVML's bit mask of clock event reasons
    gpu_foreign: NDArray[np.int64] | None = None  # other processes on the device
    judged: Literal["wall", "device"] = "wall"  # which clock `ms` and the estimates read

    def __post_init__(self) -> None:
        columns = self._columns()
        for name, column in columns.items():
            object.__setattr__(self, name, _frozen(name, column))
        if len({len(column) for column in columns.values()}) != 1:
            raise ValueError("the columns of Samples differ in length")
        if self.steal_ticks < 0 or self.throttled_us < 0:
            raise ValueError("counters of Samples must not be negative")
        if self.judged not in ("wall", "device"):
            raise ValueError(f"Samples are judged by wall or device time, not {self.judged!r}")
        if self.judged == "device" and self.device_ns is None:
            raise ValueError("Samples judged by device time need device_ns")

    def _columns(self) -> dict[str, NDArray[np.int64]]:
        """The columns that were recorded, by name."""
        columns = {name: getattr(self, name) for name in (*_ALWAYS, *_OPTIONAL)}
        return {name: column for name, column in columns.items() if column is not None}

    def __len__(self) -> int:
        return len(self.wall_ns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Samples) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @property
    def ms(self) -> NDArray[np.float64]:
        """Time of all calls in ms, (n,): wall or device time, whichever judges."""
        return (self.wall_ns if self.judged == "wall" else self._device_ns) / 1e6

    @property
    def _device_ns(self) -> NDArray[np.int64]:
        assert self.device_ns is not None
        return self.device_ns

    @property
    def clean(self) -> NDArray[np.bool_]:
        """Which calls ran without being preempted or kept from the CPU, (n,)."""
        preempted = np.not_equal(self.involuntary_switches, 0)
        return ~preempted if self.withheld is None else ~(preempted | (self.withheld != 0))

    @property
    def is_mostly_disturbed(self) -> bool:
        """Whether too few calls are clean to rely on those alone."""
        return bool(np.count_nonzero(self.clean) < MIN_CLEAN_SHARE * len(self))

    @property
    def clean_ms(self) -> NDArray[np.float64]:
        """Time of the clean calls in ms; of all calls when fewer than 25 % are clean."""
        return self.ms if self.is_mostly_disturbed else self.ms[self.clean]

    def median_ms(self) -> float:
        """The median of the clean calls."""
        return float(np.median(self.clean_ms))

    def beside(self, companions: int) -> Self:
        """The same calls, where so many of the GPU's other processes were known and idle."""
        if self.gpu_foreign is None:
            return self
        return replace(self, gpu_foreign=np.maximum(self.gpu_foreign - companions, 0))

    def doubts(self) -> tuple[str, ...]:
        """Reasons to distrust these samples, in words; empty if none."""
        return doubts_of(self)

    @classmethod
    def concatenate(cls, parts: Iterable[Samples]) -> Self:
        """All calls of all parts, in order; counters add up.

        ValueError if the parts do not all record the same columns and judge by the same clock.
        """
        none = np.empty(0, np.int64)
        kept = list(parts) or [cls(none, none, none)]
        if len({(part.judged, *part._columns()) for part in kept}) != 1:
            raise ValueError("Samples that record different columns do not concatenate")
        columns = {
            name: np.concatenate([getattr(part, name) for part in kept])
            for name in kept[0]._columns()
        }
        return cls(
            **columns,
            steal_ticks=sum(part.steal_ticks for part in kept),
            throttled_us=sum(part.throttled_us for part in kept),
            judged=kept[0].judged,
        )

    def split(self, calls: int) -> tuple[Samples, ...]:
        """Successive pieces of `calls` calls; the counters of all calls belong to no one piece."""
        return tuple(
            self._piece(slice(start, start + calls)) for start in range(0, len(self), calls)
        )

    def after(self, calls: int) -> Samples:
        """All but the first `calls` calls; the counters of all calls stay."""
        rest = self._piece(slice(calls, None))
        return replace(rest, steal_ticks=self.steal_ticks, throttled_us=self.throttled_us)

    def _piece(self, span: slice) -> Samples:
        piece: dict[str, Any] = {name: column[span] for name, column in self._columns().items()}
        return Samples(**piece, judged=self.judged)

    def to_json(self) -> dict[str, Any]:
        """A dict that `json.dumps` accepts; null for a column that was not recorded."""
        columns = dict.fromkeys(_OPTIONAL) | {k: v.tolist() for k, v in self._columns().items()}
        return columns | {
            "steal_ticks": self.steal_ticks,
            "throttled_us": self.throttled_us,
            "judged": self.judged,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; ValueError if the record is anything else."""
        if set(record) != _FIELDS:
            raise ValueError(f"samples have the fields {sorted(_FIELDS)}, not {sorted(record)}")
        missing = [name for name in _ALWAYS if record[name] is None]
        if missing:
            raise ValueError(f"samples need the columns {', '.join(missing)}")
        columns = {
            name: np.asarray(record[name] or np.empty(0, np.int64))
            for name in (*_ALWAYS, *_OPTIONAL)
            if record[name] is not None
        }
        return cls(
            **columns,
            steal_ticks=int(record["steal_ticks"]),
            throttled_us=int(record["throttled_us"]),
            judged=record["judged"],
        )

    def to_bytes(self) -> bytes:
        """Header and columns as little-endian int64, 24 to 72 bytes a call, for storage."""
        columns = self._columns()
        present = sum(1 << bit for bit, name in enumerate(_OPTIONAL) if name in columns)
        flags = present | (_JUDGED_BY_DEVICE if self.judged == "device" else 0)
        counters = struct.pack("<qqqq", len(self), self.steal_ticks, self.throttled_us, flags)
        body = counters + b"".join(column.astype("<i8").tobytes() for column in columns.values())
        return _MAGIC + struct.pack("<I", zlib.crc32(body)) + body

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """The inverse of `to_bytes`; ValueError if the bytes are damaged or anything else."""
        if len(blob) < _HEADER.size:
            raise ValueError(f"stored samples are cut short: {len(blob)} bytes")
        magic, crc, calls, steal_ticks, throttled_us, flags = _HEADER.unpack_from(blob)
        if magic != _MAGIC:
            raise ValueError(f"these are no stored samples: they begin with {magic!r}")
        names = [*_ALWAYS, *(name for bit, name in enumerate(_OPTIONAL) if flags >> bit & 1)]
        expected = _HEADER.size + 8 * len(names) * calls
        if calls < 0 or len(blob) != expected:
            raise ValueError(f"stored samples have {len(blob)} bytes where {expected} belong")
        if zlib.crc32(blob[8:]) != crc:
            raise ValueError("stored samples are damaged: their checksum differs")
        stored = np.frombuffer(blob, "<i8", offset=_HEADER.size).reshape(len(names), calls)
        return cls(
            **dict(zip(names, stored, strict=True)),
            steal_ticks=steal_ticks,
            throttled_us=throttled_us,
            judged="device" if flags & _JUDGED_BY_DEVICE else "wall",
        )


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
