"""What a page consists of, whatever it is about."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report.documents import Document
from pipeline.report.plots import Figure
from pipeline.report.tables import Table

Image = dict[str, str]  # a PNG in base64, and what is to be said of it


@dataclass(frozen=True)
class Identity:
    """The head of a page."""

    name: str
    facts: tuple[tuple[str, str], ...]  # label, value
    verdict: str
    badge: str  # CSS class


@dataclass(frozen=True)
class Section:
    """One heading with its tables, figures and lines of text."""

    title: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    lines: tuple[str, ...] = ()
    galleries: tuple[tuple[str, tuple[Image, ...]], ...] = ()  # heading, images

    @property
    def has_content(self) -> bool:
        return bool(self.tables or self.figures or self.lines)


@dataclass(frozen=True)
class Page:
    """A page of one kind, as the templates draw it."""

    kind: str  # stands above the name
    identity: Identity
    headline: tuple[tuple[str, str], ...]  # (value, label) of the numbers one looks for first
    sections: tuple[Section, ...]
    missing: tuple[str, ...] = ()  # stages that have not run
    record: Document | None = None  # what the page was made from, kept in it as JSON


def tables_of(*found: Table | Document | None) -> tuple[Table, ...]:
    """Those that are tables: `document and table(document)` is none where there is no document."""
    return tuple(table for table in found if isinstance(table, Table))
