"""A signature says who made a bundle, and nothing that was changed keeps it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.bundle import Bundle, sign_bundle, write_bundle
from pipeline.cli import main
from pipeline.errors import BundleError, DeployError
from pipeline.signing import make_keys, sign

from .test_bundle import contents, manifest_of, put_manifest

pytest.importorskip("cryptography")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "bundle"
    made.mkdir()
    write_bundle(made, manifest_of(), contents(tmp_path))
    return made


@pytest.fixture
def key(tmp_path: Path) -> Path:
    private = tmp_path / "key"
    assert make_keys(private) == tmp_path / "key.pub"
    return private


def public(key: Path) -> Path:
    return key.with_name("key.pub")


def test_a_signed_bundle_opens_with_and_without_the_key(folder: Path, key: Path) -> None:
    assert not Bundle.open(folder).signed
    sign_bundle(folder, key)
    assert Bundle.open(folder).signed
    assert Bundle.open(folder, key=public(key)).signed
    sign_bundle(folder, key)  # again: replaced, not added to the manifest
    assert Bundle.open(folder, key=public(key)).signed


def test_an_unsigned_bundle_and_another_key_are_refused(folder: Path, key: Path) -> None:
    with pytest.raises(BundleError, match="not signed"):
        Bundle.open(folder, key=public(key))
    sign_bundle(folder, key)
    other = make_keys(key.with_name("other"))
    with pytest.raises(BundleError, match=r"not made with the key to other\.pub"):
        Bundle.open(folder, key=other)


def test_a_forged_manifest_is_refused_before_it_is_parsed(folder: Path, key: Path) -> None:
    sign_bundle(folder, key)
    document = json.loads((folder / "manifest.json").read_text())
    put_manifest(folder, json.dumps({**document, "name": "other"}).encode())
    assert Bundle.open(folder).manifest.name == "other"  # what a digest alone cannot tell
    with pytest.raises(BundleError, match="not made with the key"):
        Bundle.open(folder, key=public(key))
    put_manifest(folder, b"[" * 100_000)
    with pytest.raises(BundleError, match="not made with the key"):
        Bundle.open(folder, key=public(key))


@pytest.mark.parametrize("change", [lambda s: s[:-1], lambda s: s + b"x", lambda s: bytes(64)])
def test_a_damaged_signature_is_refused(folder: Path, key: Path, change: object) -> None:
    assert callable(change)
    sign_bundle(folder, key)
    (folder / "manifest.sig").write_bytes(change((folder / "manifest.sig").read_bytes()))
    with pytest.raises(BundleError, match="not made with the key|larger than 64"):
        Bundle.open(folder, key=public(key))


def test_a_damaged_bundle_is_not_signed(folder: Path, key: Path) -> None:
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="has 5 bytes"):
        sign_bundle(folder, key)
    assert not (folder / "manifest.sig").exists()


def test_keys_are_not_overwritten_and_the_private_one_is_private(key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    before = hashlib.sha256(key.read_bytes()).hexdigest()
    with pytest.raises(DeployError, match="is there already"):
        make_keys(key)
    assert hashlib.sha256(key.read_bytes()).hexdigest() == before


def test_no_half_of_a_pair_is_written(tmp_path: Path) -> None:
    (tmp_path / "k.pub").write_text("another's")
    with pytest.raises(DeployError, match=r"k\.pub is there already"):
        make_keys(tmp_path / "k")
    assert not (tmp_path / "k").exists()


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_what_is_no_key_is_an_error(folder: Path, key: Path, content: bytes) -> None:
    sign_bundle(folder, key)
    wrong = key.with_name("wrong")
    wrong.write_bytes(content)
    with pytest.raises(BundleError, match="cannot be used as private"):
        sign(b"", wrong)
    with pytest.raises(BundleError, match="cannot be used as public"):
        Bundle.open(folder, key=wrong)
    with pytest.raises(BundleError, match="No such file"):
        Bundle.open(folder, key=key.with_name("nowhere"))
    with pytest.raises(BundleError, match="cannot be used as public"):
        Bundle.open(folder, key=key)  # the private key is not what is to be given away


def test_a_key_of_another_kind_is_an_error(tmp_path: Path) -> None:
    made = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "x25519"], capture_output=True, check=True
    )
    (tmp_path / "x25519").write_bytes(made.stdout)
    with pytest.raises(BundleError, match="cannot be used as private"):
        sign(b"", tmp_path / "x25519")


def test_openssl_verifies_the_signature(folder: Path, key: Path) -> None:
    sign_bundle(folder, key)
    command = "openssl pkeyutl -verify -rawin -pubin -inkey ../key.pub"
    files = ["-in", "manifest.json", "-sigfile", "manifest.sig"]
    done = subprocess.run(
        [*command.split(), *files], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Verified Successfully" in done.stdout


def test_commands_make_keys_and_sign(folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    made = runner.invoke(main, ["keygen", str(tmp_path / "k")])
    assert (made.exit_code, made.stdout) == (0, f"{tmp_path / 'k.pub'}\n")
    signed = runner.invoke(main, ["sign", str(folder), "--key", str(tmp_path / "k")])
    assert signed.exit_code == 0, signed.stderr
    assert Bundle.open(folder, key=tmp_path / "k.pub").signed
    again = runner.invoke(main, ["keygen", str(tmp_path / "k")])
    assert again.exit_code == 1
    assert "is there already" in again.stderr


def test_without_cryptography_the_fix_is_named(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    with pytest.raises(DeployError) as caught:
        sign(b"", key)
    assert caught.value.fix == "pip install 'wgates[sign]'"
