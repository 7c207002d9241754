"""The latency database: SQLite, one row a measured width vector, every raw sample kept."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from calibration.errors import DatabaseError
from calibration.widths import WidthVector
from targets.fingerprint import Fingerprint
from targets.timing import Comparison, Samples

SCHEMA = 1
TABLES = """
CREATE TABLE fingerprint (digest TEXT PRIMARY KEY, document TEXT NOT NULL) STRICT;
CREATE TABLE measurement (
    skeleton TEXT NOT NULL, fingerprint TEXT NOT NULL REFERENCES fingerprint (digest),
    widths TEXT NOT NULL, ratio REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL,
    candidate BLOB NOT NULL, anchor BLOB NOT NULL, calls_per_round INTEGER NOT NULL,
    doubts TEXT NOT NULL, measured_at TEXT NOT NULL,
    PRIMARY KEY (skeleton, fingerprint, widths)
) STRICT;
"""


@dataclass(frozen=True)
class LatencyRecord:
    """One measured width vector: its latency as a multiple of the dense anchor's."""

    widths: WidthVector
    ratio: float
    ratio_ci95: tuple[float, float]
    anchor_ms: float  # the anchor's median in the same rounds
    doubts: tuple[str, ...]


class LatencyDatabase:
    """Measurements keyed by skeleton, fingerprint and widths; each is durable once added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _translated(path):
            self._connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        try:
            with _translated(path):
                self._prepare()
        except DatabaseError:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        """Create the tables in a new file; DatabaseError if the file is not ours."""
        with self._connection:
            # two processes may open a new file at once
            self._connection.execute("BEGIN IMMEDIATE")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            found = self._connection.execute("SELECT name FROM sqlite_schema").fetchall()
            tables = {name for (name,) in found}
            if version > SCHEMA:
                raise DatabaseError(
                    f"{self.path.name} has schema {version}, this version reads {SCHEMA}",
                    fix="upgrade wgates, or move the file away to measure anew",
                )
            if version == 0 and not tables:
                for statement in TABLES.split(";"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
            elif version != SCHEMA or not {"fingerprint", "measurement"} <= tables:
                raise DatabaseError(
                    f"{self.path.name} is a SQLite file, but not a latency database",
                    fix="name another file, or move this one away to measure anew",
                )
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA foreign_keys = ON")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    def add(
        self,
        skeleton: str,
        fingerprint: Fingerprint,
        widths: WidthVector,
        comparison: Comparison,
    ) -> None:
        """Store one measurement with its raw samples; a repeat replaces the earlier one."""
        with _translated(self.path), self._connection:  # commits, or rolls back on an error
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute(
                "INSERT OR IGNORE INTO fingerprint VALUES (?, ?)",
                (fingerprint.digest(), json.dumps(fingerprint.to_json())),
            )
            self._connection.execute(
                "INSERT OR REPLACE INTO measurement VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    skeleton,
                    fingerprint.digest(),
                    _key(widths),
                    comparison.ratio,
                    *comparison.ratio_ci95,
                    comparison.candidate.to_bytes(),
                    comparison.anchor.to_bytes(),
                    comparison.calls_per_round,
                    json.dumps(comparison.doubts()),
                    datetime.now(UTC).isoformat(timespec="seconds"),
                ),
            )

    def records(self, skeleton: str, fingerprint: Fingerprint) -> tuple[LatencyRecord, ...]:
        """Every measurement of this network under this fingerprint, oldest first."""
        with _translated(self.path):
            rows = self._connection.execute(
                "SELECT widths, ratio, low, high, anchor, doubts FROM measurement "
                "WHERE skeleton = ? AND fingerprint = ? ORDER BY rowid",
                (skeleton, fingerprint.digest()),
            ).fetchall()
            return tuple(_record(*row) for row in rows)

    def has(self, skeleton: str, fingerprint: Fingerprint, widths: WidthVector) -> bool:
        with _translated(self.path):
            found = self._connection.execute(
                "SELECT 1 FROM measurement WHERE skeleton = ? AND fingerprint = ? AND widths = ?",
                (skeleton, fingerprint.digest(), _key(widths)),
            ).fetchone()
        return found is not None


def _key(widths: WidthVector) -> str:
    return json.dumps(dict(zip(widths.groups, widths.kept, strict=True)))


def _record(
    widths: str, ratio: float, low: float, high: float, anchor: bytes, doubts: str
) -> LatencyRecord:
    kept = json.loads(widths)
    return LatencyRecord(
        WidthVector(tuple(kept), tuple(kept.values())),
        ratio,
        (low, high),
        float(np.median(Samples.from_bytes(anchor).clean_ms)),
        tuple(json.loads(doubts)),
    )


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, ValueError) as error:
        raise DatabaseError(
            f"the latency database {path.name} cannot be used: {error}",
            fix="move the file away to measure anew, or free the disk if it is full",
        ) from error
