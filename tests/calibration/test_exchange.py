from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibration.database import LatencyDatabase
from calibration.errors import DatabaseError
from calibration.exchange import (
    DOCUMENT,
    SCHEMA,
    VERSION_KEY,
    Imported,
    export_rows,
    import_rows,
)
from calibration.rows import Row
from calibration.skeleton import Skeleton
from calibration.widths import WidthVector

from .chain import chain
from .test_database import FINGERPRINT, comparison

pyarrow = pytest.importorskip(
    "pyarrow", reason="measurements were NOT moved as Parquet: pip install 'wgates[parquet]'"
)
parquet = pytest.importorskip("pyarrow.parquet")

FOREIGN = "6" * 64


@pytest.fixture(scope="module")
def skeleton() -> Skeleton:
    return chain((32, 48))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "measured.parquet"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[LatencyDatabase]:
    with LatencyDatabase(tmp_path / "there.sqlite") as opened:
        yield opened


def row(skeleton: Skeleton, kept: int, ratio: float = 0.5, **changed: Any) -> Row:
    widths = WidthVector(skeleton.groups.names, (kept, 48))
    return replace(Row.of(skeleton.sha256, FINGERPRINT, widths, comparison(ratio)), **changed)


def take(file: Path, database: LatencyDatabase, skeleton: Skeleton) -> Imported:
    return import_rows(file, [database], skeleton.sha256, skeleton.groups)


def test_rows_arrive_with_all_their_evidence(
    skeleton: Skeleton, file: Path, tmp_path: Path, database: LatencyDatabase
) -> None:
    other = replace(FINGERPRINT, threads=FINGERPRINT.threads + 1)
    with LatencyDatabase(tmp_path / "here.sqlite") as here:
        for kept in (8, 32, 16):
            widths = WidthVector(skeleton.groups.names, (kept, 48))
            here.add(Row.of(skeleton.sha256, FINGERPRINT, widths, comparison(kept / 32)))
            here.add(Row.of(skeleton.sha256, other, widths, comparison(kept / 30)))
        exported = here.rows(skeleton.sha256)
        records = here.records(skeleton.sha256, other)
    assert len(exported) == 6
    export_rows(exported, file)
    assert str(take(file, database, skeleton)) == "6 measurements taken over, 0 known before"
    assert database.rows(skeleton.sha256) == exported
    assert database.records(skeleton.sha256, other) == records


def test_only_rows_that_lack_are_merged(
    skeleton: Skeleton, file: Path, database: LatencyDatabase
) -> None:
    mine = row(skeleton, 16, 0.7)
    assert database.merge([mine]) == 1
    export_rows([row(skeleton, 8), row(skeleton, 16, 0.9)], file)
    assert take(file, database, skeleton) == Imported(new=1, known=1, foreign=0)
    assert take(file, database, skeleton) == Imported(new=0, known=2, foreign=0)
    assert database.rows(skeleton.sha256)[0] == mine  # what was measured here stays


def test_rows_of_another_network_are_refused_and_counted(
    skeleton: Skeleton, file: Path, database: LatencyDatabase
) -> None:
    alien = replace(row(skeleton, 8), skeleton=FOREIGN)
    export_rows([alien, row(skeleton, 8), replace(alien, widths=WidthVector(("x",), (1,)))], file)
    found = take(file, database, skeleton)
    assert found == Imported(new=1, known=0, foreign=2)
    assert "2 refused, they are of another network" in str(found)
    assert database.rows(FOREIGN) == ()


def damaged(file: Path, rows: list[Row], column: str, value: Any) -> None:
    """Export `rows`, then put `value` into the last one's column."""
    export_rows(rows, file)
    table = parquet.read_table(file)
    values = table[column].to_pylist()
    position, field = table.schema.names.index(column), table.schema.field(column)
    changed = pyarrow.array([*values[:-1], value], type=field.type)
    parquet.write_table(table.set_column(position, field, changed), file)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("ratio", float("nan"), "not finite"),
        ("high", float("inf"), "not finite"),
        ("ratio", -0.5, "not positive"),
        ("low", 0.6, "not positive and within"),
        ("calls_per_round", 0, "at least 1"),
        ("anchor", b"\x00" * 80, "no stored samples"),
        ("candidate", b"WGS2", "cut short"),
        ("widths", '{"conv0": 8}', "other channel groups"),
        ("widths", '{"conv0": 33, "conv1": 48}', "conv0 keeps 33 of 32"),
        ("widths", '{"conv0": 0, "conv1": 48}', "conv0 keeps no channel"),
        ("widths", '{"conv0": -8, "conv1": 48}', "at least 0"),
        ("widths", "[" * 100_000, "recursion"),
        ("doubts", "[1]", "list of texts"),
        ("measured_at", "yesterday", "isoformat"),
        ("fingerprint", "0" * 64, "digest"),
        (DOCUMENT, "{}", "not a fingerprint"),
        (DOCUMENT, "[]", "not a fingerprint"),
    ],
)
def test_one_damaged_row_refuses_the_whole_file(
    skeleton: Skeleton,
    file: Path,
    database: LatencyDatabase,
    column: str,
    value: Any,
    words: str,
) -> None:
    damaged(file, [row(skeleton, 8), row(skeleton, 16)], column, value)
    with pytest.raises(DatabaseError, match=words) as caught:
        take(file, database, skeleton)
    assert "row 2 of 2 is damaged" in str(caught.value)
    assert "export it again" in caught.value.fix
    assert database.rows(skeleton.sha256) == ()


def test_other_parquet_files_are_refused(
    skeleton: Skeleton, file: Path, database: LatencyDatabase
) -> None:
    parquet.write_table(pyarrow.table({"customers": ["Ada"]}), file)
    with pytest.raises(DatabaseError, match="holds no measurements"):
        take(file, database, skeleton)


def test_a_column_less_is_refused(
    skeleton: Skeleton, file: Path, database: LatencyDatabase
) -> None:
    export_rows([row(skeleton, 8)], file)
    parquet.write_table(parquet.read_table(file).drop_columns(["doubts"]), file)
    with pytest.raises(DatabaseError, match="holds no measurements"):
        take(file, database, skeleton)


def test_another_schema_is_refused(
    skeleton: Skeleton, file: Path, database: LatencyDatabase
) -> None:
    export_rows([row(skeleton, 8)], file)
    table = parquet.read_table(file).replace_schema_metadata({VERSION_KEY: str(SCHEMA + 1)})
    parquet.write_table(table, file)
    with pytest.raises(DatabaseError, match=f"has schema {SCHEMA + 1}, this version reads"):
        take(file, database, skeleton)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no Parquet at all" * 100])
def test_what_is_no_parquet_file_is_refused(
    skeleton: Skeleton, file: Path, database: LatencyDatabase, content: bytes
) -> None:
    file.write_bytes(content)
    with pytest.raises(DatabaseError, match=r"cannot read measurements from measured\.parquet"):
        take(file, database, skeleton)


def test_no_flipped_byte_changes_a_measurement(
    skeleton: Skeleton, file: Path, tmp_path: Path
) -> None:
    original = row(skeleton, 8)
    export_rows([original], file)
    whole, refused = file.read_bytes(), 0
    for position in range(0, len(whole), len(whole) // 20):
        changed = bytes([whole[position] ^ 0xFF])
        file.write_bytes(whole[:position] + changed + whole[position + 1 :])
        with LatencyDatabase(tmp_path / f"{position}.sqlite") as database:
            try:
                take(file, database, skeleton)
            except DatabaseError:
                refused += 1
            assert database.rows(skeleton.sha256) in ((), (original,))
    assert refused >= 5  # the rest are statistics and names that nothing reads


def test_a_failed_export_leaves_the_earlier_file(
    skeleton: Skeleton, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_rows([row(skeleton, 8)], file)
    before = file.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        export_rows([row(skeleton, 16)], file)
    assert file.read_bytes() == before
    assert list(file.parent.glob("*.parquet*")) == [file]


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from calibration.exchange import export_rows\n"
        "from targets.errors import DeployError\n"
        "try: export_rows([], Path(sys.argv[1]))\n"
        "except DeployError as error: print(error.fix)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "pip install 'wgates[parquet]'\n"
