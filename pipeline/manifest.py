"""`Manifest`: what a bundle holds, and the distrustful reading of it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, NoReturn, Self, cast

from pipeline.errors import BundleError

SCHEMA = 2  # 1: without a digest of the manifest itself
CERTIFICATE_SCHEMA = 1
MANIFEST, CERTIFICATE = "manifest.json", "certificate.json"
DIGEST, SIGNATURE = "manifest.sha256", "manifest.sig"  # of the manifest; who made it
MAX_JSON_BYTES = 1 << 20  # a manifest or certificate of ours is a hundred times smaller
MAX_COUNT = 1 << 31  # batches, sizes and threads beyond it overflow in the runtimes
MAX_NUMBER = 1e9
MAX_SCALAR = 1 << 63
MAX_FILES = 2048
MAX_NAME = 240  # bytes of a path; longer ones do not unpack everywhere
MAX_TOTAL_BYTES = 1 << 36
MAX_SHOWN = 80  # characters of a foreign text in an error message
# names that some systems keep for devices, whatever follows the first dot
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
REPACK = "fetch the bundle again, or make it again: pipeline package RUN"


@dataclass(frozen=True)
class FileRecord:
    """What a file of the bundle must be."""

    sha256: str  # 64 hex digits
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What the bundle holds and what its engine expects; `files` names all but the manifest."""

    name: str
    wgates: str  # version that made the bundle
    created: str  # ISO 8601, UTC
    target: str
    threads: int
    batch: int  # images per call
    options: Mapping[str, Any]  # the target's other options, as `TargetOptions` names them
    precision: str  # "fp32", "fp16" or "int8"
    input_shape: tuple[int, int, int, int]  # (N, C, H, W)
    mean: tuple[float, ...]  # per input channel
    std: tuple[float, ...]  # per input channel
    classes: tuple[str, ...]  # names, in logit order
    engine: str  # key in `files`
    fingerprint: Mapping[str, Any]  # of the certified measurement
    schema: int = SCHEMA
    files: Mapping[str, FileRecord] = field(default_factory=dict)  # relative POSIX path -> record

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Read a manifest; BundleError unless every field is there, typed and consistent."""
        if not isinstance(document, dict):
            refuse("the manifest is no JSON object")
        if type(document.get("schema")) is not int or document["schema"] != SCHEMA:
            raise BundleError(
                f"the manifest is not of schema {SCHEMA}, the only one this version reads",
                fix="install the wgates version that made the bundle",
            )
        names = {one.name for one in fields(cls)}
        if wrong := sorted(names.symmetric_difference(document)):
            refuse(f"the manifest lacks {shown(wrong[0])}, or should not have it")
        for name, (is_right, wanted) in _FIELDS.items():
            if not is_right(document[name]):
                refuse(f"the manifest's {name} is not {wanted}")
        typed = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
        typed["files"] = _file_records(document["files"])
        manifest = cls(**cast("dict[str, Any]", typed))
        manifest.check()
        return manifest

    def check(self) -> None:
        """BundleError unless the fields fit each other."""
        if self.batch != self.input_shape[0]:
            refuse(f"batch {self.batch} does not fit the input shape {self.input_shape}")
        if not len(self.mean) == len(self.std) == self.input_shape[1] or min(self.std) <= 0:
            refuse("mean and std are not one number per input channel, std above zero")
        self._check_files()
        for needed in (self.engine, CERTIFICATE):
            if needed not in self.files:
                refuse(f"the manifest lists no {shown(needed)}")

    def _check_files(self) -> None:
        if len(self.files) > MAX_FILES:
            refuse(f"the manifest lists more than {MAX_FILES} files")
        if sum(record.bytes for record in self.files.values()) > MAX_TOTAL_BYTES:
            refuse(f"the manifest lists more than {MAX_TOTAL_BYTES} bytes")
        for name in self.files:
            check_name(name)
        if len({name.casefold() for name in self.files}) != len(self.files):
            refuse("two names in the manifest differ in case only")


def refuse(message: str) -> NoReturn:
    """Raise a BundleError with its fix."""
    raise BundleError(message, fix=REPACK)


def shown(text: str) -> str:
    """A text of unknown origin, safe for a terminal and short."""
    return ascii(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")


def check_name(name: str) -> None:
    """BundleError unless `name` is a plain relative POSIX path on every system."""
    path = PurePosixPath(name)
    is_plain = path.as_posix() == name and path.parts and not path.is_absolute()
    is_portable = name.isprintable() and unicodedata.is_normalized("NFC", name)
    if not is_plain or not is_portable or ".." in path.parts or set(name) & set('\\:*?"<>|'):
        refuse(f"{shown(name)} is no plain relative path")
    if any(part.endswith((" ", ".")) or _DEVICE.fullmatch(part) for part in path.parts):
        refuse(f"{shown(name)} is no plain relative path on every system")
    if len(name.encode()) > MAX_NAME:
        refuse(f"{shown(name)} is longer than {MAX_NAME} bytes")
    if path.parts[0].casefold() in (MANIFEST, DIGEST, SIGNATURE):
        refuse(f"{shown(name)} stands for the manifest itself")


def parse_json(data: bytes, name: str) -> Any:
    """JSON without duplicate keys, NaN, undue size or undue depth."""
    if len(data) > MAX_JSON_BYTES:
        refuse(f"{name} is larger than {MAX_JSON_BYTES} bytes")
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} is no valid JSON: {error}", fix=REPACK) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


# types ------------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < MAX_COUNT


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MAX_NUMBER


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def _list_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and value != [] and all(map(is_right, value))


def _is_shape(value: Any) -> bool:
    return _list_of(_is_count)(value) and len(value) == 4


def _is_scalar(value: Any) -> bool:
    if isinstance(value, (int, float)):
        return abs(value) < MAX_SCALAR  # neither infinite nor NaN
    return value is None or value == "" or _is_text(value)


def _is_flat(value: Any) -> bool:
    """An object of scalars and of lists of scalars, as `Fingerprint` is."""
    if not isinstance(value, dict):
        return False
    return all(all(map(_is_scalar, v if isinstance(v, list) else [v])) for v in value.values())


_TEXT = (_is_text, "a text")
_COUNT = (_is_count, "a whole number above zero")
_NUMBERS = (_list_of(_is_number), "a list of numbers")

_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": _TEXT,
    "wgates": _TEXT,
    "created": _TEXT,
    "target": _TEXT,
    "threads": _COUNT,
    "batch": _COUNT,
    "options": (_is_flat, "an object of plain values"),
    "precision": (lambda value: value in ("fp32", "fp16", "int8"), "fp32, fp16 or int8"),
    "input_shape": (_is_shape, "four whole numbers (N, C, H, W)"),
    "mean": _NUMBERS,
    "std": _NUMBERS,
    "classes": (_list_of(_is_text), "a list of names"),
    "engine": _TEXT,
    "fingerprint": (_is_flat, "an object of plain values"),
    "files": (lambda value: isinstance(value, dict), "an object"),
}


def _file_records(document: Mapping[str, Any]) -> dict[str, FileRecord]:
    records = {}
    for name, item in document.items():
        keys = set(item) if isinstance(item, dict) else set()
        if keys != {"sha256", "bytes"}:
            refuse(f"the manifest's entry for {shown(name)} is not sha256 and bytes")
        size = item["bytes"]
        if not _is_digest(item["sha256"]) or type(size) is not int or size < 0:
            refuse(f"the manifest's entry for {shown(name)} is no digest and size")
        records[name] = FileRecord(item["sha256"], size)
    return records
