"""`Bundle`: what a serving team gets. Nothing in it is parsed before every hash agrees."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

from calibration.widths import dump
from pipeline.errors import BundleError, FingerprintError
from pipeline.files import fix_of, write_atomically
from pipeline.foreign import (
    check_file,
    found_in,
    read_at_most,
    read_listed,
    record_of,
    refuse_empty,
)
from pipeline.manifest import (
    CERTIFICATE,
    CERTIFICATE_SCHEMA,
    DIGEST,
    MANIFEST,
    MAX_JSON_BYTES,
    REPACK,
    SIGNATURE,
    FileRecord,
    Manifest,
    check_name,
    parse_json,
    refuse,
    shown,
)
from pipeline.signing import SIGNATURE_BYTES, check_signature, sign
from targets import load_target
from targets.base import Engine, TargetOptions
from targets.fingerprint import Fingerprint

__all__ = ["Bundle", "FileRecord", "Manifest", "sign_bundle", "write_bundle"]

_BESIDE = {MANIFEST, DIGEST, SIGNATURE}  # what the manifest does not list


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was found to be what its manifest says."""

    folder: Path
    manifest: Manifest
    signed: bool = False  # there is a signature; only `open` with a key says whether it is good

    @classmethod
    def open(cls, folder: Path, *, key: Path | None = None) -> Self:
        """Check digest, schema, names, sizes and SHA-256 of everything, and with a public key the
        signature; BundleError at the first fault. Nothing is parsed before its digest agrees."""
        try:
            present, folders = found_in(folder)
            text = _manifest_text(folder, present, key)
            manifest = Manifest.from_json(parse_json(text, MANIFEST))
            _check_presence(present - _BESIDE, set(manifest.files))
            refuse_empty(folders, present)
            for name, record in manifest.files.items():
                check_file(folder / name, name, record)
        except OSError as error:
            raise BundleError(f"cannot read the bundle: {error}", fix=REPACK) from error
        return cls(folder, manifest, SIGNATURE in present)

    def path(self, name: str) -> Path:
        """Where a listed file lies; BundleError for any other."""
        if name not in self.manifest.files:
            refuse(f"the bundle has no {shown(name)}")
        return self.folder / name

    def read(self, name: str) -> bytes:
        """The content of a listed file, checked again: it may have changed since `open`."""
        try:
            return read_listed(self.path(name), name, self.manifest.files[name])
        except OSError as error:
            raise BundleError(f"cannot read {shown(name)}: {error}", fix=REPACK) from error

    @property
    def certificate(self) -> dict[str, Any]:
        """What verify measured and decided; scripts rely on its keys."""
        document = parse_json(self.read(CERTIFICATE), CERTIFICATE)
        if not isinstance(document, dict):
            refuse(f"{CERTIFICATE} is no JSON object")
        if document.get("schema") != CERTIFICATE_SCHEMA:
            raise BundleError(
                f"{CERTIFICATE} is not of schema {CERTIFICATE_SCHEMA}",
                fix="install the wgates version that made the bundle",
            )
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
        whole = replace(manifest, files={name: record_of(folder / name) for name in sorted(files)})
        text = dump(whole.to_json()).encode()
        Manifest.from_json(parse_json(text, MANIFEST))  # never write what cannot be opened
        (folder / MANIFEST).write_bytes(text)
        (folder / DIGEST).write_bytes(_digest_line(text))
    except OSError as error:
        raise BundleError(f"cannot write the bundle: {error}", fix=fix_of(error)) from error
    return whole


def sign_bundle(folder: Path, private: Path) -> None:
    """Sign a bundle that is whole; a signature that is there is replaced."""
    Bundle.open(folder)
    text = read_at_most(folder / MANIFEST, MAX_JSON_BYTES)
    write_atomically(folder / SIGNATURE, sign(text, private))


def _write(path: Path, content: Path | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        shutil.copyfile(content, path)


def _manifest_text(folder: Path, present: set[str], key: Path | None) -> bytes:
    """The manifest's bytes, once their digest, and with a key their signature, agree."""
    if MANIFEST not in present:
        refuse(f"{folder} is no bundle: it has no {MANIFEST}")
    if DIGEST not in present:
        refuse(f"the bundle has no {DIGEST}")
    text = read_at_most(folder / MANIFEST, MAX_JSON_BYTES)
    line = _digest_line(text)
    if read_at_most(folder / DIGEST, len(line)) != line:
        refuse(f"{MANIFEST} has changed: its SHA-256 differs from {DIGEST}")
    signature = None
    if SIGNATURE in present:
        signature = read_at_most(folder / SIGNATURE, SIGNATURE_BYTES)
    if key is not None:
        if signature is None:
            refuse("the bundle is not signed")
        check_signature(text, signature, key)
    return text


def _digest_line(text: bytes) -> bytes:
    """As `sha256sum` writes it, so that `sha256sum -c` checks it."""
    return f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode()


def _check_presence(present: set[str], listed: set[str]) -> None:
    if missing := sorted(listed - present):
        refuse(f"{shown(missing[0])} is missing")
    if extra := sorted(present - listed):
        refuse(f"{shown(extra[0])} is not in the manifest")
