"""Commands on a bundle: keys, signatures. Options in, work called, nothing decided here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import BudgetMissedError, InconclusiveError
from pipeline.flags import with_options
from pipeline.guard import guarded
from pipeline.hanging import MINUTES, Watch
from pipeline.options import VerifyOptions
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from pipeline.recheck import Recheck

COMMANDS: list[click.Command] = []

watchdog = click.option(
    "--watchdog",
    "bundle_watchdog",  # calibrate has an option of that name
    type=click.FloatRange(min=0, min_open=True),
    help="give a build, a load or an engine's answer up that takes this many minutes",
)

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


@click.command()
@_bundle
@with_options([STAGES["verify"]])
@click.option("--data", help="images to measure accuracy on, and to build int8 and fp16 with")
@click.option("--key", type=_file, help="public key that the bundle must be signed with")
@watchdog
@click.option(
    "--out",
    type=click.Path(exists=False, path_type=Path),
    required=True,
    help="folder of the new bundle",
)
def recertify(folder: Path, out: Path, data: str | None, key: Path | None, **flags: Any) -> None:
    """Build and certify a bundle anew for this runtime, driver or device.

    Plan and weights stay. The old bundle is not touched, and its engine also lies in the new one
    under previous/, for a rollback; recertification.json and report.html there say what changed.
    The new bundle is written whatever the verdict is; the exit code tells it.
    """

    def work() -> None:
        from pipeline.recertify import recertify as again

        certificate = again(_recheck(folder, data, key, flags), out)
        click.echo(json.dumps(certificate, indent=1))
        _judge(certificate, fix="serve with the old engine, or run the line again for this set-up")

    guarded(work)


def verify_bundle(folder: Path, bundle_data: str | None, key: Path | None, **flags: Any) -> None:
    """`pipeline verify BUNDLE`: the bundle on this machine, as JSON."""
    from pipeline.recheck import verify_bundle as again

    found = again(_recheck(folder, bundle_data, key, flags))
    click.echo(json.dumps(found, indent=1))
    _judge(found, fix="run: pipeline recertify BUNDLE")


def _judge(found: Mapping[str, Any], *, fix: str) -> None:
    """The verdict as an error, which has its exit code."""
    if found["verdict"] == "missed":
        budget = found["budget_ms"]
        here = "" if budget is None else f" of {budget:.3f} ms here"  # None: a count
        raise BudgetMissedError(f"the engine misses the certified budget{here}", fix=fix)
    if found["verdict"] == "inconclusive":
        raise InconclusiveError(
            "too noisy, or too few processes, for a verdict", fix="raise --processes"
        )


def _recheck(folder: Path, data: str | None, key: Path | None, flags: dict[str, Any]) -> Recheck:
    from pipeline.bundle import Bundle
    from pipeline.recheck import recheck_of

    given = {name: value for name, value in flags.items() if value is not None}
    watch = Watch(60 * given.pop("bundle_watchdog", MINUTES))
    return recheck_of(Bundle.open(folder, key=key), VerifyOptions(**given), data, watch)


COMMANDS += [recertify, sign, keygen]
