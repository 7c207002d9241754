"""`pipeline`: options in, stages called, errors to exit codes. No logic lives here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.bundle_commands import COMMANDS, verify_bundle, watchdog
from pipeline.check.command import check
from pipeline.errors import BudgetMissedError, InconclusiveError
from pipeline.flags import with_options
from pipeline.guard import guarded
from pipeline.manifest import MANIFEST
from pipeline.report_command import report
from pipeline.run import Run, Stage
from pipeline.stages import STAGES


class InOrder(click.Group):
    """Lists its commands as they were added: the whole line, its stages in order, the rest."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(package_name="wgates")
def main() -> None:
    """Prune a CNN to a millisecond budget and hand over a verified engine.

    `pipeline run` does the whole line; every stage is a command of its own on a run folder.
    """
    # idle threads of torch must sleep, not spin: on a shared machine a spinning team waits for
    # the one thread that was preempted, and a training step takes several times as long
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


_config = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with a section per stage; a flag beats it",
)
_json = click.option("--json", "as_json", is_flag=True, help="the result as JSON on stdout")

_parquet = click.Path(dir_okay=False, path_type=Path)
_import = click.option(
    "--import", "imported", type=_parquet, help="only take measurements over from a Parquet file"
)
_export = click.option(
    "--export", "exported", type=_parquet, help="only write the measurements to a Parquet file"
)


_data = click.option(
    "--data", "bundle_data", help="of a bundle only: images to measure accuracy on"
)
_key = click.option(
    "--key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="of a bundle only: public key that it must be signed with",
)
BUNDLE_ONLY = ("bundle_data", "key", "bundle_watchdog")
VERIFY = """Certificate: parity, accuracy, latency, verdict.

RUN is a run folder, or a bundle: one that holds a manifest.json. Of a bundle the hashes, parity,
accuracy (with --data) and latency are repeated on this machine, and what differs from the
certificate's set-up is said; --processes, --block-seconds and --engine-tolerance apply, and
--watchdog, which of a run folder is pipeline calibrate's.
"""


@main.command()
@with_options(list(STAGES.values()))
@_config
@_json
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="run folder"
)
def run(out: Path, config: Path | None, as_json: bool, **flags: Any) -> None:
    """The whole line: from a model and a budget to a verified bundle.

    The same command on the same folder resumes; stages whose inputs and options did not change
    are not done again.
    """
    guarded(
        lambda: _execute(out, list(STAGES.values()), config, flags, as_json),
        resumes=True,
    )


def _stage_command(stage: Stage) -> click.Command:
    def callback(
        folder: Path,
        config: Path | None,
        as_json: bool,
        imported: Path | None = None,
        exported: Path | None = None,
        **flags: Any,
    ) -> None:
        if stage.name == "verify" and (folder / MANIFEST).exists():
            guarded(lambda: verify_bundle(folder, **flags))
        elif given := [name for name in BUNDLE_ONLY if flags.get(name) is not None]:
            flag = given[0].removeprefix("bundle_")
            raise click.UsageError(f"--{flag} is of a bundle only, and {folder} is none")
        elif imported or exported:
            guarded(lambda: _exchange(folder, config, flags, imported, exported))
        else:
            guarded(lambda: _execute(folder, [stage], config, flags, as_json), resumes=True)

    callback.__doc__ = f"{stage.produces[0].upper()}{stage.produces[1:]}."
    command = with_options([stage])(_config(_json(callback)))
    if stage.name == "calibrate":
        command = _import(_export(command))
    if stage.name == "verify":
        callback.__doc__ = VERIFY
        command = _data(_key(watchdog(command)))
    folder = click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
    return click.command(stage.name)(folder(command))


for _stage in STAGES.values():
    main.add_command(_stage_command(_stage))
for _command in COMMANDS:
    main.add_command(_command)
main.add_command(check)
main.add_command(report)


@main.command()
@click.option("--explain", metavar="TARGET", help="why one target is or is not available here")
@_json
def targets(explain: str | None, as_json: bool) -> None:
    """What can be built and run here, and what is missing."""

    def work() -> None:
        from pipeline.listing import describe_targets, draw_explanation, draw_targets

        found = describe_targets(explain)
        if as_json:
            click.echo(json.dumps(found, indent=1))
        elif explain is None:
            draw_targets(found)
        else:
            draw_explanation(found[0])

    guarded(work)


@main.command()
@click.option("--target", required=True, help="what this device runs; see: pipeline targets")
@click.option(
    "--address", metavar="HOST:PORT", help="a machine of the fleet  [default: start a new fleet]"
)
@click.option("--port", default=6379, help="where a new fleet listens")
def worker(target: str, address: str | None, port: int) -> None:
    """Join this device to a measuring fleet, until it is ended; needs no torch.

    Measure with: pipeline calibrate RUN --fleet ADDRESS, on a machine of the fleet. Ray listens on
    all interfaces and does what it is told: in a trusted network only.
    """

    def work() -> None:
        from pipeline.worker import join

        join(target, address, port)

    guarded(work)


def _execute(
    folder: Path,
    stages: Sequence[Stage],
    config: Path | None,
    flags: dict[str, Any],
    as_json: bool,
) -> None:
    from pipeline.console import Console, draw_summary
    from pipeline.serving import target_of

    with Console(quiet=as_json) as console:
        run_folder = Run(folder, STAGES)
        with run_folder.locked():
            run_folder.resolve(_given(flags), config)
            if len(stages) == len(STAGES):
                target_of(run_folder)  # found missing now, not after the dense training
            for stage in stages:
                run_folder.execute(stage, console)
    if stages[-1].name in ("verify", "package"):
        certificate = run_folder.document("verify", "certificate.json")
        if as_json:
            click.echo(json.dumps(certificate))
        else:
            draw_summary(run_folder.folder, certificate)
        _judge(certificate)
    elif as_json:
        click.echo(json.dumps({"run": str(folder), "stages": [stage.name for stage in stages]}))


def _exchange(
    folder: Path,
    config: Path | None,
    flags: dict[str, Any],
    imported: Path | None,
    exported: Path | None,
) -> None:
    from pipeline.measurements import export_measurements, import_measurements

    run_folder = Run(folder, STAGES)
    with run_folder.locked():
        run_folder.resolve(_given(flags), config)
        if imported:
            click.echo(f"calibrate: {import_measurements(run_folder, imported)}")
        if exported:
            count = export_measurements(run_folder, exported)
            click.echo(f"calibrate: {count} measurements written to {exported}")


def _judge(certificate: dict[str, Any]) -> None:
    """The verdict as an exit code."""
    if certificate["verdict"] == "missed":
        if certificate["budget_ms"] is None:
            raise BudgetMissedError(
                f"the plan misses the budget of {certificate['budget_count']:,} "
                f"({certificate['objective']})",
                fix="run: pipeline prune, with the plan that it makes",
            )
        raise BudgetMissedError(
            f"the engine misses the budget of {certificate['budget_ms']:.3f} ms",
            fix="widen --margin and run it again, or ask for a larger budget",
        )
    if certificate["verdict"] == "inconclusive":
        raise InconclusiveError(
            "the machine was too noisy for a verdict",
            fix="free the machine, or raise --processes, and run: pipeline verify RUN",
        )


__all__ = ["main"]
