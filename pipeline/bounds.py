"""What an option is: a field with its help and bounds, and why a value may not be it."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NewType

from pipeline.budget import Budget

Share = NewType("Share", float)  # a flag may say "1%", TOML and the field say 0.01


def option(
    default: Any, text: str, *, negative: str = "", settles: bool = True, **bounds: float
) -> Any:
    """A field with its help text; `bounds` are `least`, `most`, `above` and `below`.

    `negative` is what the flag of a switch is called when it is off: "" makes it --no-NAME.
    What does not settle the result, such as where the work is done, makes no stage stale.
    """
    unknown = bounds.keys() - _BOUNDS
    assert not unknown, unknown
    metadata = {"help": text, "bounds": bounds, "negative": negative, "settles": settles}
    return field(default=default, metadata=metadata)


_BOUNDS: Mapping[str, tuple[Callable[[float, float], bool], str]] = {
    "least": (lambda value, bound: value >= bound, "at least"),
    "most": (lambda value, bound: value <= bound, "at most"),
    "above": (lambda value, bound: value > bound, "greater than"),
    "below": (lambda value, bound: value < bound, "less than"),
}

_TAKEN: Mapping[type, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "a text"),
    Path: ((str, Path), "a path"),
}


def complaint(options: type, name: str, value: Any) -> str | None:
    """Why `value` may not be the option `name`, in words; None when it may.

    Flags and TOML files are both held to this.
    """
    kind: Any = typing.get_type_hints(options)[name]
    plain = without_none(kind)
    if typing.get_origin(plain) is Literal:
        choices = typing.get_args(plain)
        return None if value in choices else f"it is one of {', '.join(choices)}"
    plain = getattr(plain, "__supertype__", plain)
    taken, words = _TAKEN[plain]
    # Python's True is an int, TOML's is not
    if not isinstance(value, taken) or (isinstance(value, bool) and plain is not bool):
        return f"it is {words}"
    if isinstance(value, float) and not math.isfinite(value):
        return "it is a finite number"
    if name == "budget":
        return _no_budget(value)
    item = next(item for item in fields(options) if item.name == name)
    for bound, limit in item.metadata.get("bounds", {}).items():
        holds, said = _BOUNDS[bound]
        if not holds(value, limit):
            return f"it is {said} {limit:g}"
    return None


def without_none(kind: Any) -> Any:
    """The type that a field has where it is set."""
    parts = typing.get_args(kind)
    return next(part for part in parts if part is not NoneType) if NoneType in parts else kind


def _no_budget(text: str) -> str | None:
    try:
        Budget.parse(text)
    except ValueError as error:
        return str(error)
    return None
