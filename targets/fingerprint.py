"""`Fingerprint`: everything that must agree before two latencies may be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from targets.machine import (
    allowed_cpus,
    cgroup_quota,
    cpu_device,
    cpu_fields,
    cpu_governor,
    cpu_isa,
)

__all__ = ["Fingerprint", "allowed_cpus", "cpu_fields", "cpu_fingerprint"]


@dataclass(frozen=True)
class Fingerprint:
    """Where and how a latency was measured; latencies compare only when all fields agree."""

    target: str  # such as "ort-cpu"
    precision: str  # "fp32", "fp16" or "int8"
    device: str  # vendor, family, model, stepping and name
    runtime: str  # such as "onnxruntime 1.31.1"
    driver: str  # "" where there is none
    batch: int  # images per call
    threads: int
    affinity: int  # CPUs the process may use
    settings: tuple[str, ...]  # what we chose, such as "optimization=all"
    isa: tuple[str, ...]  # instruction sets, sorted
    cgroup_quota: float | None  # CPUs granted; None: unlimited
    clocks: str  # governor or locked clocks; "" if unreadable

    def differences(self, other: Fingerprint) -> tuple[str, ...]:
        """Each field that differs, as "field: ours != theirs"; empty when both compare."""
        names = [field.name for field in fields(self)]
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return tuple(
            f"{name}: {_shown(ours)} != {_shown(theirs)}"
            for name, ours, theirs in pairs
            if ours != theirs
        )

    def to_json(self) -> dict[str, Any]:
        """A dict that `json.dumps` accepts."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; ValueError names missing and unknown fields."""
        names = {field.name for field in fields(cls)}
        if names != set(record):
            wrong = ", ".join(sorted(names.symmetric_difference(record)))
            raise ValueError(f"not a fingerprint: missing or unknown fields {wrong}")
        values = dict(record)
        for name in ("settings", "isa"):
            values[name] = tuple(values[name])
        return cls(**values)

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def cpu_fingerprint(
    target: str,
    precision: str,
    *,
    runtime: str,
    batch: int,
    threads: int,
    settings: tuple[str, ...],
) -> Fingerprint:
    """The fingerprint of a target that runs on this machine's CPU."""
    return Fingerprint(
        target=target,
        precision=precision,
        device=cpu_device(),
        runtime=runtime,
        driver="",
        batch=batch,
        threads=threads,
        affinity=len(allowed_cpus()),
        settings=settings,
        isa=cpu_isa(),
        cgroup_quota=cgroup_quota(),
        clocks=cpu_governor(),
    )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "none" if value in (None, "") else str(value)
