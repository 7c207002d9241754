"""`pipeline report`: pages of runs, bundles and comparisons, written or served."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.guard import guarded
from pipeline.manifest import MANIFEST

HOST, PORT = "127.0.0.1", 8765

_folder = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("folder", metavar="FOLDER", type=_folder)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="HTML file to write")
@click.option("--against", type=_folder, help="run or bundle whose certificate to compare with")
@click.option("--serve", is_flag=True, help="list all runs, bundles and check pages of FOLDER")
@click.option("--host", default=HOST, help="with --serve: where to listen")
@click.option("--port", default=PORT, help="with --serve: where to listen; 0: any free port")
def report(
    folder: Path, out: Path | None, against: Path | None, serve: bool, host: str, port: int
) -> None:
    """One self-contained HTML page about a run or a bundle, whatever it has so far.

    FOLDER is a run folder or a bundle. With --serve it is a folder that holds any number of them:
    they are listed on a page of this machine, with a link to the page of each, until Ctrl-C. Who
    reaches the address sees all of them, so leave --host as it is unless the network is trusted.
    """
    if serve and (out or against):
        raise click.UsageError("--serve writes nothing: leave --out and --against out")
    if not serve and (host, port) != (HOST, PORT):
        raise click.UsageError("--host and --port need --serve")
    if not serve and out is None and (folder / MANIFEST).exists():
        raise click.UsageError("nothing is written into a bundle: give --out")
    guarded(lambda: _serve(folder, host, port) if serve else _write(folder, out, against))


def _serve(folder: Path, host: str, port: int) -> None:
    from pipeline.report.serving import serve

    serve(folder, host, port, click.echo)


def _write(folder: Path, out: Path | None, against: Path | None) -> None:
    from pipeline.files import write_atomically
    from pipeline.report import render_comparison_of, render_report

    path = out or folder / ("report.html" if against is None else "comparison.html")
    page = render_report(folder) if against is None else render_comparison_of(against, folder)
    write_atomically(path, page.encode())
    click.echo(path)
