"""Fields of options as flags of the command line: name, type, default, bounds and help."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click

from pipeline.bounds import without_none
from pipeline.budget import Budget
from pipeline.options import Share, complaint
from pipeline.run import Stage


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


def _flag(options: type, item: Field[Any], kind: Any) -> Callable[[Any], Any]:
    """A click option for one field: its name, type, default, bounds and help."""
    click_type = without_none(kind)
    if typing.get_origin(click_type) is typing.Literal:
        click_type = click.Choice(typing.get_args(click_type))
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


def with_options(stages: Sequence[Stage]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return with_fields([stage.options for stage in stages])


def with_fields(classes: Sequence[type]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A flag for every field of these classes of options."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for options in reversed(classes):
            kinds = typing.get_type_hints(options)
            for item in reversed(fields(options)):
                command = _flag(options, item, kinds[item.name])(command)
        return command

    return decorate
