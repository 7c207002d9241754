"""`pipeline`: options in, stages called, errors to exit codes. No logic lives here."""

from __future__ import annotations

import json
import os
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import NoneType
from typing import Any

import click

from pipeline.budget import Budget
from pipeline.errors import BudgetMissedError, DeployError, InconclusiveError
from pipeline.options import Share, complaint
from pipeline.run import Run, Stage
from pipeline.stages import STAGES

EXIT_FAILED, EXIT_INCONCLUSIVE, EXIT_INTERRUPTED = 1, 3, 130


class BudgetType(click.ParamType[str]):
    """A latency budget; a wrong one is wrong usage, exit code 2."""

    name = "budget"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(Budget.parse(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class ShareType(click.ParamType[float]):
    """A share: 0.01 or 1%."""

    name = "share"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        number, percent, rest = str(value).strip().partition("%")
        try:
            return float(number) / (100 if percent else 1) if not rest else float(value)
        except ValueError:
            self.fail(f"{value!r} is not a share: write 0.01 or 1%", param, ctx)


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


def _flag(options: type, item: Field[Any], kind: Any) -> Callable[[Any], Any]:
    """A click option for one field: its name, type, default, bounds and help."""
    inner = [part for part in typing.get_args(kind) if part is not NoneType]
    if typing.get_origin(kind) is typing.Literal:
        click_type: Any = click.Choice(typing.get_args(kind))
    else:
        click_type = inner[0] if inner else kind
    if item.name == "budget":
        click_type = BudgetType()
    elif click_type is Share:
        click_type = ShareType()
    elif click_type is Path:
        click_type = click.Path(path_type=Path)
    name = item.name.replace("_", "-")
    default = "unset" if item.default is None else item.default

    def check(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if value is not None and (reason := complaint(options, item.name, value)):
            raise click.BadParameter(f"{value} will not do: {reason}.", ctx, param)
        return value

    return click.option(
        f"--{name}/--{item.metadata['negative'] or f'no-{name}'}"
        if click_type is bool
        else f"--{name}",
        item.name,
        type=None if click_type is bool else click_type,
        default=None,
        callback=check,
        help=f"{item.metadata['help']}  [default: {default}]",
    )


def _with_options(stages: Sequence[Stage]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for stage in reversed(stages):
            kinds = typing.get_type_hints(stage.options)
            for item in reversed(fields(stage.options)):
                command = _flag(stage.options, item, kinds[item.name])(command)
        return command

    return decorate


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


_config = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with a section per stage; a flag beats it",
)
_json = click.option("--json", "as_json", is_flag=True, help="the result as JSON on stdout")


@main.command()
@_with_options(list(STAGES.values()))
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
    _guarded(lambda: _execute(out, list(STAGES.values()), config, flags, as_json))


def _stage_command(stage: Stage) -> click.Command:
    def callback(folder: Path, config: Path | None, as_json: bool, **flags: Any) -> None:
        _guarded(lambda: _execute(folder, [stage], config, flags, as_json))

    callback.__doc__ = f"{stage.produces[0].upper()}{stage.produces[1:]}."
    command = _with_options([stage])(_config(_json(callback)))
    folder = click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
    return click.command(stage.name)(folder(command))


for _stage in STAGES.values():
    main.add_command(_stage_command(_stage))


@main.command()
@click.argument("folder", metavar="RUN", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="HTML file to write")
def report(folder: Path, out: Path | None) -> None:
    """One self-contained HTML page about a run, whatever stages it has done."""

    def work() -> None:
        from pipeline.report import write_report

        path = out or folder / "report.html"
        write_report(folder, path)
        click.echo(path)

    _guarded(work)


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

    _guarded(work)


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


def _guarded(work: Callable[[], None]) -> None:
    """Expected failures in one line with their fix; anything else is a bug and shows itself."""
    try:
        work()
    except DeployError as error:
        click.echo(f"error: {error.message}", err=True)
        if error.fix:
            click.echo(f"  fix: {error.fix}", err=True)
        inconclusive = isinstance(error, InconclusiveError)
        sys.exit(EXIT_INCONCLUSIVE if inconclusive else EXIT_FAILED)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command resumes", err=True)
        sys.exit(EXIT_INTERRUPTED)


__all__ = ["main"]
