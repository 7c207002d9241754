"""The report of a run: one HTML page that loads nothing, and the summary it shares with the CLI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import DeployError
from pipeline.report.documents import Documents
from pipeline.report.tables import summary_rows

__all__ = ["render_report", "summary_rows", "write_report"]

TEMPLATES = Path(__file__).parents[1] / "templates"


def render_report(folder: Path) -> str:
    """The page of a run folder; a run that is not finished gives what it has."""
    from pipeline.report.page import headline, identity, sections  # plots only when asked for

    documents = Documents.read(folder)
    try:
        content = {
            "identity": identity(documents, folder.resolve().name),
            "headline": headline(documents),
            "missing": documents.missing_stages(),
            "sections": sections(documents),
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DeployError(
            f"a result in {folder.name} is damaged: {type(error).__name__} {error}",
            fix="run the stage again that wrote it",
        ) from error
    return _render(content)


def write_report(folder: Path, out: Path) -> None:
    """Render the page of a run folder into the file `out`."""
    from pipeline.files import write_atomically

    write_atomically(out, render_report(folder).encode())


def _render(content: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = [figure.to_json() for section in content["sections"] for figure in section.figures]
    return environment.get_template("report.html").render(
        **content,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        figures=figures,
    )
