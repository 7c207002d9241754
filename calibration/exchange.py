"""Measurements as one Parquet file, to be carried from one machine's database to another's.

A row of the file is a row of the database with its raw samples, and with the whole fingerprint
beside its digest. Reading checks every value and runs nothing.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.database import LatencyDatabase
from calibration.errors import DatabaseError, GroupsError
from calibration.rows import COLUMNS, Row
from calibration.widths import ChannelGroups, WidthVector
from targets.errors import DeployError
from targets.files import replacing
from targets.fingerprint import Fingerprint

DOCUMENT = "fingerprint_document"  # JSON whose digest stands in the column `fingerprint`
VERSION_KEY = b"wgates.measurements"
SCHEMA = 3  # of such a file; until 2 candidates were timed in caches left cold by the anchor
INSTALL = "pip install 'wgates[parquet]'"
EXPORT_AGAIN = "export it again where it was measured: pipeline calibrate RUN --export FILE"

_TYPES = {
    **{"ratio": "float64", "low": "float64", "high": "float64"},
    **{"candidate": "binary", "anchor": "binary", "calls_per_round": "int64"},
}


@dataclass(frozen=True)
class Imported:
    """What became of the rows of a file."""

    new: int
    known: int  # the database had them
    foreign: int  # of other networks, refused

    def __str__(self) -> str:
        parts = [f"{self.new} measurements taken over", f"{self.known} known before"]
        if self.foreign:
            parts.append(f"{self.foreign} refused, they are of another network")
        return ", ".join(parts)


def export_rows(rows: Sequence[Row], out: Path) -> None:
    """Write `out` whole or not at all."""
    arrow, parquet = _pyarrow()
    records = [row.stored() | {DOCUMENT: _document(row.fingerprint)} for row in rows]
    table = arrow.Table.from_pylist(records, schema=_schema(arrow))
    with replacing(out) as partial:
        parquet.write_table(table, partial, compression="zstd", write_page_checksum=True)


def import_rows(
    path: Path, databases: Sequence[LatencyDatabase], skeleton: str, groups: ChannelGroups
) -> Imported:
    """Merge what each database lacks; DatabaseError, and nothing merged, if a row is damaged."""
    rows, foreign = _read(path, skeleton, groups)
    new = max(database.merge(rows) for database in databases)
    return Imported(new, len(rows) - new, foreign)


def _read(path: Path, skeleton: str, groups: ChannelGroups) -> tuple[list[Row], int]:
    """The rows of this network, and the number of the others."""
    rows: list[Row] = []
    records = _records(path)
    fingerprints: dict[tuple[str, str], Fingerprint] = {}
    for index, record in enumerate(records):
        document = record.pop(DOCUMENT)
        try:
            key = (record["fingerprint"], document)
            if key not in fingerprints:
                fingerprints[key] = _fingerprint(*key)
            row = Row.from_stored(record, fingerprints[key])
            if row.skeleton == skeleton:
                _check_widths(row.widths, groups)
                rows.append(row)
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise DatabaseError(
                f"{path.name}: row {index + 1} of {len(records)} is damaged: {error}",
                fix=EXPORT_AGAIN,
            ) from error
    return rows, len(records) - len(rows)


def _records(path: Path) -> list[dict[str, Any]]:
    arrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            found, expected = file.schema_arrow, _schema(arrow)
            version = (found.metadata or {}).get(VERSION_KEY, b"").decode(errors="replace")
            if version and version != str(SCHEMA):
                raise DatabaseError(
                    f"{path.name} has schema {version}, this version reads {SCHEMA}",
                    fix="use the same version of wgates on both machines",
                )
            if not version or not found.equals(expected):
                raise DatabaseError(
                    f"{path.name} is a Parquet file, but holds no measurements",
                    fix="name a file that pipeline calibrate RUN --export has written",
                )
            records: list[dict[str, Any]] = file.read(use_threads=False).to_pylist()
    except (OSError, ValueError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DatabaseError(
            f"cannot read measurements from {path.name}: {reason}", fix=EXPORT_AGAIN
        ) from error
    return records


def _schema(arrow: Any) -> Any:
    """No column may hold nulls, nor a type that only a plug-in can read."""
    fields = [
        arrow.field(name, arrow.type_for_alias(_TYPES.get(name, "string")), nullable=False)
        for name in (*COLUMNS, DOCUMENT)
    ]
    return arrow.schema(fields, metadata={VERSION_KEY: str(SCHEMA)})


def _document(fingerprint: Fingerprint) -> str:
    return json.dumps(fingerprint.to_json())


def _fingerprint(digest: str, document: str) -> Fingerprint:
    fingerprint = Fingerprint.from_json(json.loads(document))
    if fingerprint.digest() != digest:
        raise ValueError("the fingerprint is not the one whose digest it carries")
    return fingerprint


def _check_widths(widths: WidthVector, groups: ChannelGroups) -> None:
    full = groups.full()
    if widths.groups != full.groups:
        raise ValueError("its widths are of other channel groups")
    wide = [
        f"{name} keeps {kept} of {channels}"
        for name, kept, channels in zip(full.groups, widths.kept, full.kept, strict=True)
        if kept > channels
    ]
    if wide:
        raise ValueError(wide[0])
    try:
        groups.removed(widths)
    except GroupsError as error:
        raise ValueError(error.message) from error


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DeployError(f"Parquet files need pyarrow: {error}", fix=INSTALL) from error
