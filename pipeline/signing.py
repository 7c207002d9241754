"""Ed25519 signatures: who made a bundle. Keys are PEM files, as OpenSSL writes and reads them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import BundleError, DeployError
from pipeline.files import disk_faults_told, refuse_taken

SIGNATURE_BYTES = 64
MAX_KEY_BYTES = 1 << 14
INSTALL = "pip install 'wgates[sign]'"
MAKE_KEYS = "make a pair of keys: pipeline keygen KEY"


def make_keys(private: Path) -> Path:
    """Write a new private key, and the public one beside it as NAME.pub; returns that one."""
    public = private.with_name(f"{private.name}.pub")
    refuse_taken(private, public)
    serialization, ed25519 = _library()
    key = ed25519.Ed25519PrivateKey.generate()
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    shared = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    with disk_faults_told("cannot write the keys", private):
        _write_new(private, secret, mode=0o600)
        _write_new(public, shared, mode=0o644)
    return public


def sign(data: bytes, private: Path) -> bytes:
    """The signature of `data`, 64 bytes."""
    serialization, ed25519 = _library()
    with _key_faults_told(private, "private"):
        key = serialization.load_pem_private_key(_read_key(private), password=None)
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise ValueError("it is of another kind")
    return bytes(key.sign(data))


def check_signature(data: bytes, signature: bytes, public: Path) -> None:
    """BundleError unless the holder of the private key to `public` signed `data`."""
    serialization, ed25519 = _library()
    with _key_faults_told(public, "public"):
        key = serialization.load_pem_public_key(_read_key(public))
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise ValueError("it is of another kind")
    try:
        key.verify(signature, data)
    except importlib.import_module("cryptography.exceptions").InvalidSignature as error:
        raise BundleError(
            f"the bundle's signature was not made with the key to {public.name}",
            fix="fetch the bundle again, or ask who made it for the right public key",
        ) from error


def _read_key(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_KEY_BYTES)


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    """Never over a file that is there: a lost private key cannot be made again."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


@contextmanager
def _key_faults_told(path: Path, kind: str) -> Iterator[None]:
    unsupported = importlib.import_module("cryptography.exceptions").UnsupportedAlgorithm
    try:
        yield
    except (OSError, ValueError, TypeError, unsupported) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no such PEM file"
        raise BundleError(
            f"{path.name} cannot be used as {kind} ed25519 key: {reason}", fix=MAKE_KEYS
        ) from error


def _library() -> tuple[Any, Any]:
    try:
        return (
            importlib.import_module("cryptography.hazmat.primitives.serialization"),
            importlib.import_module("cryptography.hazmat.primitives.asymmetric.ed25519"),
        )
    except ImportError as error:
        raise DeployError(f"signatures need cryptography: {error}", fix=INSTALL) from error
