"""Reports: one HTML page that loads nothing, and the summary that pages share with the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.report.documents import Document, Documents
from pipeline.report.rendering import damage_told, render
from pipeline.report.tables import summary_rows

if TYPE_CHECKING:
    from pipeline.bundle import Bundle

__all__ = [
    "render_check",
    "render_comparison",
    "render_comparison_of",
    "render_report",
    "summary_rows",
]

MANIFEST = "manifest.json"  # a folder that holds one is a bundle


def render_report(folder: Path) -> str:
    """The page of a run folder, finished or not, or of a bundle."""
    from pipeline.report.page import run_page  # plots only when asked for

    if (folder / MANIFEST).exists():
        return _render_bundle(folder)
    documents = Documents.read(folder)
    with damage_told(folder.name, "run the stage again that wrote it"):
        page = run_page(documents, folder.resolve().name)
    return render(page)


def render_check(record: Document) -> str:
    """The page of a check: `record` holds its result and what its history says, both as JSON."""
    from pipeline.report.check_page import check_page

    with damage_told("the check", "run the check again"):
        page = check_page(record)
    return render(page)


def render_comparison(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The page of a certificate beside the one that it replaces."""
    from pipeline.report.comparison import comparison_page

    with damage_told("a certificate", "make the bundle anew: pipeline package RUN"):
        page = comparison_page(name, old, new)
    return render(page)


def render_comparison_of(old: Path, new: Path) -> str:
    """The page of the certificates of two runs or bundles."""
    name = f"{new.resolve().name} against {old.resolve().name}"
    (before, _), (now, replaced) = _certificates(old), _certificates(new)
    if replaced != before:
        now = {**now, "previous": None}  # it tells of another engine than that of `old`
    return render_comparison(name, before, now)


def _certificates(folder: Path) -> tuple[Document, Document | None]:
    """That of a run or a bundle, and that of the bundle which it replaced, if it did.

    MissingInputError where a run has none yet.
    """
    from pipeline.bundle import Bundle
    from pipeline.errors import MissingInputError

    if (folder / MANIFEST).exists():
        bundle = Bundle.open(folder)
        return bundle.certificate, _replaced(bundle)
    certificate = Documents.read(folder).verify
    if certificate is None:
        raise MissingInputError(f"{folder} has no certificate yet", fix="run: pipeline verify RUN")
    return certificate, None


def _render_bundle(folder: Path) -> str:
    """A bundle's certificate, beside the one before it where it was certified again."""
    from pipeline.bundle import Bundle
    from pipeline.report.page import run_page

    bundle = Bundle.open(folder)
    old = _replaced(bundle)
    name, certificate = bundle.manifest.name, bundle.certificate
    if old is not None:
        return render_comparison(name, old, certificate)
    with damage_told(folder.name, "make the bundle anew: pipeline package RUN"):
        page = run_page(Documents(verify=certificate), name, whole=False)
    return render(page)


def _replaced(bundle: Bundle) -> Document | None:
    """The certificate of the bundle which this one replaced; None if it replaced none."""
    from pipeline.manifest import CERTIFICATE, parse_json

    previous = f"previous/{CERTIFICATE}"
    if previous not in bundle.manifest.files:
        return None
    found: Document = parse_json(bundle.read(previous), previous)
    return found
