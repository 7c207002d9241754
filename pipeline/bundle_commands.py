"""Commands on a bundle: keys, signatures. Options in, work called, nothing decided here."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.guard import guarded

COMMANDS: list[click.Command] = []

_bundle = click.argument(
    "folder", metavar="BUNDLE", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
_file = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("private", metavar="KEY", type=_file)
def keygen(private: Path) -> None:
    """Make a pair of ed25519 keys: KEY to sign bundles with, KEY.pub to give away.

    Nothing is overwritten. KEY is not encrypted: keep it where only the signer can read it.
    """

    def work() -> None:
        from pipeline.signing import make_keys

        click.echo(make_keys(private))

    guarded(work)


@click.command()
@_bundle
@click.option("--key", type=_file, required=True, help="the private key; see: pipeline keygen")
def sign(folder: Path, key: Path) -> None:
    """Sign a bundle, so that others can tell that it is yours.

    The signature covers the manifest, which holds the SHA-256 of every file. It is checked by
    pipeline verify BUNDLE --key KEY.pub, or by OpenSSL.
    """

    def work() -> None:
        from pipeline.bundle import sign_bundle

        sign_bundle(folder, key)
        click.echo(f"signed: {folder}")

    guarded(work)


COMMANDS += [sign, keygen]
