"""`python -m examples.serve BUNDLE`: serve a bundle until SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.bundle import Bundle
from pipeline.errors import DeployError
from pipeline.guard import guarded

INSTALL = "pip install 'wgates[serve]'"
SHUTDOWN_SECONDS = 10  # for requests that came before the signal
BACKLOG = 128

_count = click.IntRange(min=1)
_file = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class Options:
    """How a bundle is served."""

    host: str
    port: int  # 0: any that is free
    instances: int
    waiting: int
    max_request_mb: int
    key: Path | None
    any_fingerprint: bool


@click.command()
@click.argument(
    "folder", metavar="BUNDLE", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on")
@click.option("--port", default=8000, show_default=True, help="0: any that is free")
@click.option("--instances", type=_count, default=1, show_default=True, help="engines side by side")
@click.option(
    "--waiting",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="requests that may wait; any more get status 503",
)
@click.option("--max-request-mb", type=_count, default=16, show_default=True, help="in MiB")
@click.option("--key", type=_file, help="public key that the bundle must be signed with")
@click.option(
    "--any-fingerprint", is_flag=True, help="serve although the latency was certified elsewhere"
)
def main(folder: Path, **flags: Any) -> None:
    """Answer the KServe v2 protocol from a bundle, of which nothing loads before every hash agrees.

    Each engine runs with the bundle's own number of threads and session options.
    """

    def work() -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            serve(folder, Options(**flags))
        except KeyboardInterrupt:  # of either signal, once all requests are answered
            click.echo("stopped")

    guarded(work)


def serve(folder: Path, options: Options) -> None:
    """Serve until a signal; DeployError if it cannot begin."""
    bundle = Bundle.open(folder, key=options.key)
    try:
        import uvicorn

        from examples.serve.app import Limits, make_app
        from examples.serve.pool import Pool
    except ImportError as error:
        raise DeployError(f"the server needs FastAPI and uvicorn: {error}", fix=INSTALL) from error
    manifest, limits = bundle.manifest, Limits(request_bytes=options.max_request_mb << 20)
    with (
        _listening(options) as door,
        Pool(
            bundle,
            options.instances,
            waiting=options.waiting,
            any_fingerprint=options.any_fingerprint,
        ) as pool,
    ):
        host, port = door.getsockname()[:2]
        at = f"http://{f'[{host}]' if ':' in host else host}:{port}/v2/models/{manifest.name}"
        click.echo(f"{manifest.name} of {folder} on {manifest.target}: {at}")
        settings = uvicorn.Config(
            make_app(manifest, pool, limits),
            lifespan="off",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        uvicorn.Server(settings).run(sockets=[door])


def _listening(options: Options) -> socket.socket:
    """Bound before anything is loaded: a port that is taken should not cost the time."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise DeployError(
            f"cannot listen on {options.host} port {options.port}: {error}",
            fix="choose another --host or --port",
        ) from error


if __name__ == "__main__":
    main()
