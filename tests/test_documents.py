"""README.md and docs/: numbers of committed results, links that lead somewhere, real options."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pipeline.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
# of docker build, benchmarks.faults and benchmarks.accuracy
OTHERS = {"--build-arg", "--work", "--form"}

names = [page.relative_to(ROOT).as_posix() for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=names)


def test_the_tables_are_what_the_results_say() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tables", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_table_stands_on_one_page() -> None:
    from benchmarks.tables import TABLES, placed

    assert sorted(placed()) == sorted(TABLES)


def test_every_stage_is_in_the_readme() -> None:
    from pipeline.stages import STAGES

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for stage in STAGES.values():
        assert f"| `{stage.name}` |" in text


def test_the_readme_leads_to_every_page() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    assert linked >= {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), link
        if anchor:
            assert anchor in headings(there), link


def headings(page: Path) -> set[str]:
    """As anchors."""
    lines = page.read_text(encoding="utf-8").splitlines()
    titles = [line.lstrip("# ").lower() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}


@each_page
def test_every_option_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))
    assert named - OTHERS <= set(options(main))


def options(command: click.Command) -> Iterator[str]:
    """Of a command and all below it, with `--no-` forms."""
    yield from ("--help", "--version")
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from options(below)
