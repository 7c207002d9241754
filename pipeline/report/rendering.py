"""Pages as HTML that loads nothing, and the record that a page carries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DeployError
from pipeline.report.documents import Document

if TYPE_CHECKING:
    from pipeline.report.content import Page

TEMPLATES = Path(__file__).parents[1] / "templates"
MAX_HEAD = 1 << 20  # bytes at the start of a page in which its record ends

_RECORD = re.compile(rb'<script type="application/json" id="record">(.*?)</script>', re.DOTALL)


def render(page: Page) -> str:
    """A page with its plots."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    return render_template(
        "report.html",
        {
            "page": page,
            "figures": [f.to_json() for section in page.sections for f in section.figures],
            "script": Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
            "plotly": Markup(get_plotlyjs().replace("</script", "<\\/script")),
        },
    )


def render_template(name: str, content: Mapping[str, Any]) -> str:
    """A template with the style sheet that all of them share."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # in order: a page made anew is the same
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return environment.get_template(name).render(**content, style=style)


def record_in(path: Path) -> Document | None:
    """What the page in a file was made from; None if it is no such page."""
    try:
        with path.open("rb") as file:
            found = _RECORD.search(file.read(MAX_HEAD))
        record = json.loads(found[1]) if found else None
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


@contextmanager
def damage_told(what: str, fix: str) -> Iterator[None]:
    """A document that lacks what a page shows, or has it otherwise: one line with its fix."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DeployError(
            f"a result in {what} is damaged: {type(error).__name__} {error}", fix=fix
        ) from error
