"""The latency database: SQLite, one row a measured width vector, every raw sample kept."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from calibration.errors import DatabaseError
from calibration.rows import COLUMNS, Row, widths_key, widths_of
from calibration.widths import WidthVector
from targets.fingerprint import Fingerprint
from targets.samples import Samples

SCHEMA = 4  # until 3 a candidate was timed in caches that the anchor had left cold
TABLES = """
CREATE TABLE fingerprint (digest TEXT PRIMARY KEY, document TEXT NOT NULL) STRICT;
CREATE TABLE measurement (
    skeleton TEXT NOT NULL, fingerprint TEXT NOT NULL REFERENCES fingerprint (digest),
    widths TEXT NOT NULL, ratio REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL,
    candidate BLOB NOT NULL, anchor BLOB NOT NULL, calls_per_round INTEGER NOT NULL,
    doubts TEXT NOT NULL, measured_at TEXT NOT NULL,
    PRIMARY KEY (skeleton, fingerprint, widths)
) STRICT;
CREATE TABLE lost (
    skeleton TEXT NOT NULL, fingerprint TEXT NOT NULL, widths TEXT NOT NULL,
    reason TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (skeleton, fingerprint, widths)
) STRICT
"""


@dataclass(frozen=True)
class LatencyRecord:
    """One measured width vector: its latency as a multiple of the dense anchor's."""

    widths: WidthVector
    ratio: float
    ratio_ci95: tuple[float, float]
    anchor_ms: float  # the anchor's median in the same rounds
    candidate_ms: float  # the candidate's; the ratio is paired, so not quite their quotient
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
            elif version == 0 or not {"fingerprint", "measurement"} <= tables:
                raise DatabaseError(
                    f"{self.path.name} is a SQLite file, but not a latency database",
                    fix="name another file, or move this one away to measure anew",
                )
            elif version < SCHEMA:
                raise DatabaseError(
                    f"{self.path.name} has schema {version}, whose networks were timed otherwise "
                    f"than this version ({SCHEMA}) times them",
                    fix="move the file away to measure anew",
                )
            if version != SCHEMA:
                self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
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

    def add(self, row: Row) -> None:
        """Store one measurement with its raw samples; a repeat replaces the earlier one."""
        with _translated(self.path):
            self._insert("REPLACE", [row])

    def merge(self, rows: Iterable[Row]) -> int:
        """Store those rows that are not there yet, all or none; how many they were."""
        with _translated(self.path):
            return self._insert("IGNORE", rows)

    def _insert(self, repeated: str, rows: Iterable[Row]) -> int:
        marks = ", ".join(f":{name}" for name in COLUMNS)
        with self._connection:  # commits, or rolls back on an error
            self._connection.execute("BEGIN IMMEDIATE")
            before = self._connection.total_changes
            documents = 0
            for row in rows:
                found = row.fingerprint
                documents += self._connection.execute(
                    "INSERT OR IGNORE INTO fingerprint VALUES (?, ?)",
                    (found.digest(), json.dumps(found.to_json())),
                ).rowcount
                self._connection.execute(
                    f"INSERT OR {repeated} INTO measurement VALUES ({marks})", row.stored()
                )
            return self._connection.total_changes - before - documents

    def rows(self, skeleton: str) -> tuple[Row, ...]:
        """Every measurement of this network with its evidence, oldest first."""
        with _translated(self.path):
            cursor = self._connection.execute(
                f"SELECT {', '.join(f'm.{name}' for name in COLUMNS)}, f.document "
                "FROM measurement m JOIN fingerprint f ON f.digest = m.fingerprint "
                "WHERE m.skeleton = ? ORDER BY m.rowid",
                (skeleton,),
            )
            return tuple(_row(values) for values in cursor)

    def records(self, skeleton: str, fingerprint: Fingerprint) -> tuple[LatencyRecord, ...]:
        """Every measurement of this network under this fingerprint, oldest first."""
        with _translated(self.path):
            rows = self._connection.execute(
                "SELECT widths, ratio, low, high, anchor, candidate, doubts FROM measurement "
                "WHERE skeleton = ? AND fingerprint = ? ORDER BY rowid",
                (skeleton, fingerprint.digest()),
            ).fetchall()
            return tuple(
                _record(widths, ratio, low, high, (anchor, candidate), doubts)
                for widths, ratio, low, high, anchor, candidate, doubts in rows
            )

    def has(self, skeleton: str, fingerprint: Fingerprint, widths: WidthVector) -> bool:
        with _translated(self.path):
            found = self._connection.execute(
                "SELECT 1 FROM measurement WHERE skeleton = ? AND fingerprint = ? AND widths = ?",
                (skeleton, fingerprint.digest(), widths_key(widths)),
            ).fetchone()
        return found is not None

    def mark_lost(
        self, skeleton: str, fingerprint: Fingerprint, widths: WidthVector, reason: str
    ) -> None:
        """Remember that this candidate cannot be measured, so that nobody tries again."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        key = (skeleton, fingerprint.digest(), widths_key(widths), reason, at)
        with _translated(self.path):
            self._connection.execute("INSERT OR REPLACE INTO lost VALUES (?, ?, ?, ?, ?)", key)

    def lost(self, skeleton: str, fingerprint: Fingerprint) -> dict[WidthVector, str]:
        """The candidates that cannot be measured, and why."""
        with _translated(self.path):
            rows = self._connection.execute(
                "SELECT widths, reason FROM lost WHERE skeleton = ? AND fingerprint = ?",
                (skeleton, fingerprint.digest()),
            ).fetchall()
            return {widths_of(widths): reason for widths, reason in rows}


def _row(values: tuple[Any, ...]) -> Row:
    *columns, document = values
    fingerprint = Fingerprint.from_json(json.loads(document))
    return Row.from_stored(dict(zip(COLUMNS, columns, strict=True)), fingerprint)


def _record(
    widths: str, ratio: float, low: float, high: float, samples: tuple[bytes, bytes], doubts: str
) -> LatencyRecord:
    anchor, candidate = map(Samples.from_bytes, samples)
    return LatencyRecord(
        widths_of(widths),
        ratio,
        (low, high),
        anchor.median_ms(),
        candidate.median_ms(),
        tuple(json.loads(doubts)),
    )


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, ValueError, TypeError, RecursionError) as error:
        raise DatabaseError(
            f"the latency database {path.name} cannot be used: {error}",
            fix="move the file away to measure anew, or free the disk if it is full",
        ) from error
