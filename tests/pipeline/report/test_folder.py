"""What a folder holds, line by line; what is damaged or a link is not followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.check.page import record_of, write_page
from pipeline.errors import DeployError
from pipeline.files import digest
from pipeline.report import render_report
from pipeline.report.folder import Item, item_page, items_of, listing_page
from tests.pipeline.test_recheck import make
from tests.pipeline.test_report import Page, example, write_run

from .examples import check_result


def run_of(folder: Path, documents: dict[str, Any], *events: str) -> Path:
    write_run(folder, documents)
    (folder / "run.toml").write_text("")
    lines = [json.dumps({"at": at, "event": "stage finished"}) for at in events]
    (folder / "events.jsonl").write_text("\n".join([*lines, '{"at": "20']))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run, one that is not, one that is damaged, a bundle, and a check page."""
    root = tmp_path / "runs"
    early = {name: d for name, d in example().items() if name.startswith(("prepare/", "trace/"))}
    run_of(root / "whole", example(), "2026-03-01T00:00:00+00:00", "2026-03-05T08:09:10.5+02:00")
    run_of(root / "deep" / "half & <half>", early, "2026-03-02T00:00:00+00:00")
    run_of(root / "broken", {"prepare/prepare.json": [1]})
    make(root / "bundle")
    (root / "bundle").with_name("engine.json").unlink()
    write_page(root / "nightly.html", check_result(), [])
    (root / "other.html").write_text("<p>no page of ours</p>")
    return root


def by_path(folder: Path) -> dict[str, Item]:
    return {item.path: item for item in items_of(folder)}


def test_everything_is_listed_with_the_latest_first(folder: Path) -> None:
    assert [(item.path, item.kind) for item in items_of(folder)] == [
        ("whole", "run"),
        ("nightly.html", "check"),
        ("deep/half & <half>", "run"),
        ("bundle", "bundle"),
        ("broken", "run"),
    ]


def test_a_finished_run_says_what_its_certificate_says(folder: Path) -> None:
    item = by_path(folder)["whole"]
    assert dict(item.cells) == {
        "model": "wgates:resnet20",
        "target": "ort-cpu",
        "budget": "0.6x",
        "verdict": "met",
        "latency ms": "0.8871 (1.704x)",
        "top-1 %": "98.06 (−0.55)",
        "date": "2026-03-05 06:09",
    }
    assert item.badge == "met"


def test_a_run_that_is_not_done_names_the_next_stage(folder: Path) -> None:
    item = by_path(folder)["deep/half & <half>"]
    assert (item.model, item.target, item.verdict) == ("wgates:resnet20", "–", "calibrate is next")
    assert item.badge == "none"


def test_what_was_made_of_an_older_plan_is_not_shown(folder: Path) -> None:
    run = folder / "whole"
    for stage in ("prune", "finetune", "verify"):
        (run / stage / "stage.json").write_text(json.dumps({"stage": stage, "needs": {}}))
    reads = {"finetune": "prune", "verify": "finetune"}

    def note() -> None:
        for stage, need in reads.items():
            needs = {need: digest(run / need / "stage.json")}
            (run / stage / "stage.json").write_text(json.dumps({"stage": stage, "needs": needs}))

    note()
    assert by_path(folder)["whole"].verdict == "met"
    (run / "prune" / "stage.json").write_text(json.dumps({"stage": "prune", "options": "other"}))
    assert by_path(folder)["whole"].verdict == "finetune is next"
    assert "0.8871" not in render_report(run)
    note()
    assert by_path(folder)["whole"].verdict == "met"


def test_a_check_says_what_was_held_against_what(folder: Path) -> None:
    item = by_path(folder)["nightly.html"]
    slowdown = check_result().gate("slowdown")
    assert slowdown is not None
    assert item.model == "resnet20-new against resnet20-main"
    assert (item.verdict, item.badge, item.budget) == ("regression", "missed", "at most +2.50 %")
    assert f"({100 * (slowdown.value or 0):+.2f} %)" in item.latency
    assert item.accuracy == "pass"


def test_a_bundle_of_its_own_is_listed(folder: Path) -> None:
    item = by_path(folder)["bundle"]
    assert (item.target, item.verdict, item.at[:10]) == ("fake", "met", "2026-01-02")


def test_what_is_damaged_is_a_line_that_says_so(folder: Path) -> None:
    assert "prepare/prepare.json is damaged" in by_path(folder)["broken"].fault
    (folder / "bundle" / "model.onnx").write_bytes(b"other")
    assert "'model.onnx' has 5 bytes" in by_path(folder)["bundle"].fault
    spoiled = record_of(check_result(), [])
    del spoiled["result"]["candidate"]
    page = f'<script type="application/json" id="record">{json.dumps(spoiled)}</script>'
    (folder / "nightly.html").write_text(page)
    assert "nightly.html is damaged" in by_path(folder)["nightly.html"].fault


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    outside = run_of(tmp_path / "outside", example())
    write_page(tmp_path / "outside.html", check_result(), [])
    (folder / "linked").symlink_to(outside)
    (folder / "linked.html").symlink_to(tmp_path / "outside.html")
    certificate = folder / "whole" / "verify" / "certificate.json"
    certificate.unlink()
    certificate.symlink_to(outside / "verify" / "certificate.json")
    found = by_path(folder)
    assert not {"linked", "linked.html"} & set(found)
    assert "lies outside of the folder" in found["whole"].fault
    with pytest.raises(DeployError, match="lies outside of the folder"):
        item_page(folder, "whole")


def test_the_page_of_the_listing_escapes_names_and_links_to_each(folder: Path) -> None:
    page = Page(listing_page(folder))
    links = [found["href"] for tag, found in page.tags if tag == "a"]
    assert "/page?of=deep/half%20%26%20%3Chalf%3E" in links
    assert len(links) == 4  # the damaged one has nothing to show
    assert "half & <half>" in page.text
    assert links[0] == "/page?of=whole"


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    assert "No run, bundle or check page" in listing_page(tmp_path)


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../runs/whole", "/etc/passwd", "whole/", "other.html", "deep", "\0"]
)
def test_only_what_is_listed_has_a_page(folder: Path, path: str) -> None:
    assert item_page(folder, path) is None


def test_each_item_has_its_page(folder: Path) -> None:
    for path, words in (
        ("whole", "budget met"),
        ("nightly.html", "resnet20-new against resnet20-main"),
    ):
        page = item_page(folder, path)
        assert page is not None
        assert words in page


def test_html_that_was_changed_is_not_handed_on(folder: Path) -> None:
    path = folder / "nightly.html"
    path.write_text(path.read_text().replace("<body>", "<body><script>alert(1)</script>"))
    page = item_page(folder, "nightly.html")
    assert page is not None
    assert "alert(1)" not in page


def test_a_run_may_be_the_folder_itself(folder: Path) -> None:
    (item,) = items_of(folder / "whole")
    assert item.path == "."
    assert item_page(folder / "whole", ".") is not None
