"""`Bundle`: what a serving team gets. Nothing in it is parsed before every hash agrees."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

from calibration.widths import dump
from pipeline.errors import BundleError, FingerprintError
from pipeline.manifest import (
    CERTIFICATE,
    MANIFEST,
    MAX_JSON_BYTES,
    REPACK,
    FileRecord,
    Manifest,
    check_name,
    parse_json,
    refuse,
    shown,
)
from targets import load_target
from targets.base import Engine, TargetOptions
from targets.fingerprint import Fingerprint

__all__ = ["Bundle", "FileRecord", "Manifest", "write_bundle"]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was found to be what its manifest says."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Check schema, names, sizes and SHA-256 of everything; BundleError at the first fault."""
        try:
            present = _files_in(folder)
            if MANIFEST not in present:
                refuse(f"{folder} is no bundle: it has no {MANIFEST}")
            manifest = Manifest.from_json(_read_json(folder / MANIFEST))
            _check_presence(present - {MANIFEST}, set(manifest.files))
            for name, record in manifest.files.items():
                _check_file(folder / name, name, record)
        except OSError as error:
            raise BundleError(f"cannot read the bundle: {error}", fix=REPACK) from error
        return cls(folder, manifest)

    def path(self, name: str) -> Path:
        """Where a listed file lies; BundleError for any other."""
        if name not in self.manifest.files:
            refuse(f"the bundle has no {shown(name)}")
        return self.folder / name

    @property
    def certificate(self) -> dict[str, Any]:
        """What verify measured and decided; its keys stand in the design."""
        document = _read_json(self.path(CERTIFICATE))
        if not isinstance(document, dict):
            refuse(f"{CERTIFICATE} is no JSON object")
        return cast("dict[str, Any]", document)

    def load(self, *, any_fingerprint: bool = False) -> Engine:
        """The engine, to be used in `with`; FingerprintError on another set-up unless told."""
        manifest = self.manifest
        target = load_target(manifest.target, target_options(manifest))
        if not any_fingerprint:
            self._check_fingerprint(target.fingerprint())
        engine = target.load(self.path(manifest.engine))
        if engine.input_shape != manifest.input_shape:
            engine.close()
            refuse(f"the engine takes {engine.input_shape}, not {manifest.input_shape}")
        return engine

    def _check_fingerprint(self, here: Fingerprint) -> None:
        try:
            certified = Fingerprint.from_json(self.manifest.fingerprint)
        except (ValueError, TypeError) as error:
            raise BundleError(f"the manifest's fingerprint: {error}", fix=REPACK) from error
        if differences := certified.differences(here):
            raise FingerprintError(
                f"the bundle was certified on another set-up: {'; '.join(differences)}",
                fix="measure it here first: pipeline recertify BUNDLE",
            )


def target_options(manifest: Manifest) -> TargetOptions:
    """The options that the engine was built and measured with; BundleError for foreign ones."""
    default = asdict(TargetOptions())
    for name, value in manifest.options.items():
        if name not in default or name in ("batch", "threads"):
            refuse(f"the manifest's options hold {shown(name)}, which is none")
        wanted = list if isinstance(default[name], tuple) else type(default[name])
        if not isinstance(value, wanted):
            refuse(f"the manifest's option {shown(name)} is not of type {wanted.__name__}")
    return TargetOptions(batch=manifest.batch, threads=manifest.threads, **manifest.options)


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, Path | bytes]) -> Manifest:
    """Write a bundle into an empty folder; returns the manifest with its files.

    Give it a working folder and rename that: a bundle is whole or not there.
    """
    for name in files:
        check_name(name)
    try:
        if any(folder.iterdir()):
            raise BundleError(f"{folder} is not empty", fix="remove it and run it again")
        for name, content in files.items():
            _write(folder / name, content)
        whole = replace(manifest, files={name: _record_of(folder / name) for name in sorted(files)})
        text = dump(whole.to_json()).encode()
        Manifest.from_json(parse_json(text, MANIFEST))  # never write what cannot be opened
        (folder / MANIFEST).write_bytes(text)
    except OSError as error:
        raise BundleError(
            f"cannot write the bundle: {error}", fix="mend that, then run: pipeline package RUN"
        ) from error
    return whole


def _write(path: Path, content: Path | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        shutil.copyfile(content, path)


def _files_in(folder: Path) -> set[str]:
    """Every file under `folder` as a relative POSIX path; BundleError if one is special."""
    if not folder.is_dir():
        refuse(f"{folder} is no folder")
    found: set[str] = set()
    unseen = [folder]
    while unseen:
        with os.scandir(unseen.pop()) as entries:
            for entry in entries:
                relative = Path(entry.path).relative_to(folder).as_posix()
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    unseen.append(Path(entry.path))
                elif stat.S_ISREG(mode):
                    found.add(relative)
                else:
                    refuse(f"{shown(relative)} is a link or a special file")
    return found


def _check_presence(present: set[str], listed: set[str]) -> None:
    if missing := sorted(listed - present):
        refuse(f"{shown(missing[0])} is missing")
    if extra := sorted(present - listed):
        refuse(f"{shown(extra[0])} is not in the manifest")


def _check_file(path: Path, name: str, record: FileRecord) -> None:
    size = path.stat().st_size  # first: it is free, and it names a truncated download
    if size != record.bytes:
        refuse(f"{shown(name)} has {size} bytes, the manifest says {record.bytes}")
    if _record_of(path) != record:
        refuse(f"{shown(name)} has changed: its SHA-256 differs from the manifest's")


def _record_of(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileRecord(sha256=digest.hexdigest(), bytes=file.tell())


def _read_json(path: Path) -> Any:
    with path.open("rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    return parse_json(data, path.name)
