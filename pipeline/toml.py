"""`run.toml` and the files of options that users write: sections of plain values."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.errors import DeployError


def plain(value: Any) -> Any:
    """An option's value as TOML and JSON know it."""
    return str(value) if isinstance(value, Path) else value


def read_toml(path: Path) -> dict[str, Any]:
    """The file's sections; DeployError if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeployError(
            f"{path} is not readable TOML: {error}", fix="correct the file"
        ) from error


def to_toml(options: Mapping[str, Any]) -> str:
    """A section for each dataclass of options."""
    lines = ["# every option as resolved: flag beats file beats default; absent means unset"]
    for section, values in options.items():
        lines.append(f"\n[{section}]")
        for key, value in asdict(values).items():
            if value is not None:
                # TOML has no surrogate pairs, so characters stay as they are
                lines.append(f"{key} = {json.dumps(plain(value), ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
