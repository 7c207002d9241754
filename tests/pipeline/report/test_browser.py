"""Every kind of page in a real browser: no complaints, the right numbers, nothing cut off.

With PAGES_FOLDER set, the pages and their screenshots are kept there, to be looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.check.page import write_page
from pipeline.report import render_check, render_comparison, render_report, summary_rows
from pipeline.report.check_page import gates, latency
from pipeline.report.comparison import claims
from pipeline.report.folder import listing_page
from tests.browser import DESKTOP, EXECUTABLE, PHONE, Browser
from tests.pipeline.test_report import CERTIFICATE, example, write_run

from .examples import check_record, check_result, recertified

pytestmark = pytest.mark.skipif(
    EXECUTABLE is None, reason="pages were NOT tried in a browser: chromium is not installed"
)
KINDS = ("run", "check", "comparison", "listing")
DARK_BELOW, LIGHT_ABOVE = 60, 220  # mean brightness of a page, 0 to 255

# elements that reach beyond the screen, unless they scroll by themselves
CUT_OFF = """
[...document.querySelectorAll('main *, header *')]
  .filter(e => !e.closest('.scroll') && !e.closest('svg') && e.getClientRects().length)
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 120))
"""
DRAWN = """
[...document.querySelectorAll('.plot')].map(
  p => [p.id, p.querySelectorAll('.main-svg').length, p.getBoundingClientRect().height])
"""
INK = """
[...document.querySelectorAll('.plot .xtick text, .plot .legendtext')]
  .map(t => getComputedStyle(t).fill)
"""
HEAD = "(h => h && getComputedStyle(h).display)(document.querySelector('#listing thead'))"
LAST_MARK = """
(async () => {
  const plot = document.getElementById('looks-slowdown');
  plot.scrollIntoView({block: 'center'});
  await new Promise(requestAnimationFrame);
  const marks = plot.querySelectorAll('.scatterlayer .trace:nth-child(2) .point');
  const place = marks[marks.length - 1].getBoundingClientRect();
  return [place.x + place.width / 2, place.y + place.height / 2];
})()
"""
HOVERED = """
(async () => {
  const layer = document.querySelector('#looks-slowdown .hoverlayer');
  for (let tries = 0; tries < 100 && !layer.textContent; tries++)
    await new Promise(done => setTimeout(done, 50));
  return layer.textContent;
})()
"""


@dataclass(frozen=True)
class Seen:
    """One visit of a page."""

    url: str
    complaints: list[str]
    requested: list[str]
    cut_off: list[str]
    width: int  # of all that can be scrolled to
    drawn: list[tuple[str, int, float]]  # plot, layers, height
    tables: dict[str, list[list[str]]]
    brightness: float  # mean over the page, 0 to 255
    ink: set[str]  # of what plots write
    head: str | None  # how the head of the listing is displayed


def page_of(kind: str, runs: Path) -> str:
    if kind == "check":
        return render_check(check_record())
    if kind == "comparison":
        return render_comparison("resnet20-on-2-cores", *recertified())
    whole = write_run(runs / "resnet20-on-2-cores", example())
    if kind == "run":
        return render_report(whole)
    (whole / "run.toml").write_text("")
    write_page(runs / "nightly.html", check_result(), [])
    return listing_page(runs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("PAGES_FOLDER")
    return Path(kept) if kept else tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module", params=KINDS)
def seen(
    request: pytest.FixtureRequest, browser: Browser, folder: Path, tmp_path_factory: Any
) -> dict[str, Seen]:
    """A page of one kind on a light desktop and on a dark phone."""
    path = folder / f"{request.param}.html"
    path.write_text(page_of(request.param, tmp_path_factory.mktemp("runs")), encoding="utf-8")
    return {
        "phone": visit(browser, path, width=PHONE, dark=True),
        "desktop": visit(browser, path, width=DESKTOP, dark=False),
    }


def visit(browser: Browser, path: Path, *, width: int, dark: bool) -> Seen:
    complaints = browser.open(path.as_uri(), width=width, dark=dark)
    picture = browser.screenshot()
    if "PAGES_FOLDER" in os.environ:
        path.with_name(f"{path.stem}-{width}.png").write_bytes(picture)
    return Seen(
        path.as_uri(),
        complaints,
        browser.requested(),
        browser.evaluate(CUT_OFF),
        browser.evaluate("document.documentElement.scrollWidth"),
        [tuple(found) for found in browser.evaluate(DRAWN)],
        browser.tables(),
        float(np.asarray(Image.open(BytesIO(picture)).convert("L")).mean()),
        set(browser.evaluate(INK)),
        browser.evaluate(HEAD),
    )


def test_a_page_renders_without_complaint(seen: dict[str, Seen]) -> None:
    for screen in seen.values():
        assert screen.complaints == []
        # and nothing else, on the network or off it; plotly draws a heatmap as an image of its own
        assert [url for url in screen.requested if not url.startswith("data:")] == [screen.url]
        assert all(layers >= 2 and height > 150 for _, layers, height in screen.drawn)
        assert bool(screen.drawn) == ("listing" not in screen.url)


def test_nothing_is_cut_off(seen: dict[str, Seen]) -> None:
    for screen, width in ((seen["phone"], PHONE), (seen["desktop"], DESKTOP)):
        assert screen.cut_off == []
        assert screen.width == width


def test_a_page_is_dark_where_that_is_preferred(seen: dict[str, Seen]) -> None:
    assert seen["phone"].brightness < DARK_BELOW
    assert seen["desktop"].brightness > LIGHT_ABOVE
    assert seen["phone"].ink <= {"rgb(232, 234, 237)"}  # as light as the page's text
    assert seen["desktop"].ink <= {"rgb(27, 31, 36)"}


def test_the_tables_that_are_shown_are_those_of_the_document(seen: dict[str, Seen]) -> None:
    result = check_record()["result"]
    expected: dict[str, Sequence[Sequence[str]]] = {
        "summary": summary_rows(CERTIFICATE),
        "gates": gates(result).rows,
        "check-latency": latency(result).rows,
        "comparison": claims(*recertified()).rows,
    }
    for screen in seen.values():
        compared = set(expected) & set(screen.tables)
        assert compared or "listing" in screen.tables
        for name in compared:
            assert [list(row) for row in expected[name]] == screen.tables[name]


def test_the_listing_is_cards_on_a_phone(seen: dict[str, Seen]) -> None:
    heads = (seen["phone"].head, seen["desktop"].head)
    rows = seen["phone"].tables.get("listing")
    assert heads == ((None, None) if rows is None else ("none", "table-header-group"))
    if rows is not None:
        models = [row[1] for row in rows]
        assert models == ["resnet20-new against resnet20-main", "wgates:resnet20"]


def test_a_plot_says_more_under_the_mouse(browser: Browser, folder: Path) -> None:
    path = folder / "hovered.html"
    path.write_text(render_check(check_record()), encoding="utf-8")
    browser.open(path.as_uri())
    slowdown = check_record()["result"]["gates"][0]
    x, y = browser.evaluate(LAST_MARK)
    browser.hover(x - 1, y)
    browser.hover(x, y)
    said = browser.evaluate(HOVERED)
    assert f"+{100 * slowdown['value']:.2f} %" in said
    assert "median so far" in said
    # and the same page is printed in ink on paper
    browser.prefer("print", dark=True)
    style = "getComputedStyle(document.body)"
    colors = browser.evaluate(f"[{style}.color, {style}.backgroundColor]")
    assert colors == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    pdf = browser.pdf()
    if "PAGES_FOLDER" in os.environ:
        path.with_suffix(".pdf").write_bytes(pdf)
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") >= 2
