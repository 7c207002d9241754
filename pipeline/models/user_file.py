"""Calls `path/to/file.py:factory`, the user's own Python file, for models and for data."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import DataError, ModelError

UserError = type[ModelError] | type[DataError]

# What a mistake in the user's file raises. Our own errors are not among them and pass untouched.
USER_CODE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def is_user_file(spec: str) -> bool:
    """True for `path/to/file.py:factory`; the path may be wrong, the form is not."""
    return ".py:" in spec


def without_folder(spec: str) -> str:
    """`file.py:factory` of `path/to/file.py:factory`: bundles do not say where a user keeps it."""
    path, _, name = spec.rpartition(":")
    return f"{Path(path).name}:{name}" if is_user_file(spec) else spec


def call_user_factory(spec: str, options: Mapping[str, object], *, error: UserError) -> Any:
    """Call the factory with those of `options` that its signature accepts; returns its result."""
    path_text, _, name = spec.rpartition(":")
    path = Path(path_text)
    if not path.is_file():
        raise error(f"{spec!r}: there is no file {path}", fix="give path/to/file.py:factory")
    with _importable_folder(path.resolve().parent), _blamed_on(path, error):
        factory = _named(_import_privately(path), name, spec=spec, error=error)
        return factory(**_accepted(factory, options))


def _named(module: ModuleType, name: str, *, spec: str, error: UserError) -> Callable[..., Any]:
    value = getattr(module, name, None)
    if callable(value):
        return value  # type: ignore[no-any-return]
    found = sorted(
        key for key, item in vars(module).items() if callable(item) and not key.startswith("_")
    )
    raise error(
        f"{spec!r}: the file has no callable {name!r}",
        fix=f"callables in the file: {', '.join(found) or 'none'}",
    )


def _import_privately(path: Path) -> ModuleType:
    """Import the file once per content, under a name that cannot shadow another module."""
    source = path.read_bytes()
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + source).hexdigest()
    name = f"_wgates_user_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"Python cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look the module up while it runs
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _accepted(factory: Callable[..., Any], options: Mapping[str, object]) -> dict[str, object]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # some callables written in C have no signature
        return {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(options)
    by_keyword = {
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    return {key: value for key, value in options.items() if key in by_keyword}


@contextlib.contextmanager
def _importable_folder(folder: Path) -> Iterator[None]:
    """Lets the file import its neighbours; last in line, so it shadows no installed package."""
    entry = str(folder)
    sys.path.append(entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


@contextlib.contextmanager
def _blamed_on(path: Path, error: UserError) -> Iterator[None]:
    try:
        yield
    except USER_CODE_ERRORS as failure:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(failure.__traceback__)
            if Path(frame.filename).resolve() == path.resolve()
        ]
        if isinstance(failure, SyntaxError):
            lines = [failure.lineno]
        where = f"{path}, line {lines[-1]}" if lines else f"{path}"
        reason = f"{type(failure).__name__}: {failure}"
        raise error(f"{where} failed with {reason}", fix="correct the file") from failure
