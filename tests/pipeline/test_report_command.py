"""`pipeline report` of runs, bundles and two certificates; its server is tried elsewhere."""

from __future__ import annotations

import copy
from pathlib import Path

from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.report import summary_rows

from .test_recheck import make
from .test_report import CERTIFICATE, Page, write_run


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_of(folder: Path, median: float) -> Path:
    certificate = copy.deepcopy(CERTIFICATE)
    certificate["latency_ms"]["engine"]["p50"] = median
    return write_run(folder, {"verify/certificate.json": certificate})


def test_a_run_has_its_page_in_its_folder(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 0.8871)
    result = invoke("report", run)
    assert (result.exit_code, result.stdout) == (0, f"{run / 'report.html'}\n"), result.stderr
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert [tuple(row) for row in page.tables["summary"][1:]] == summary_rows(CERTIFICATE)


def test_a_bundle_shows_its_certificate_and_stays_as_it_is(tmp_path: Path) -> None:
    certified = {**CERTIFICATE, "target": "fake"}
    bundle = make(tmp_path / "made" / "bundle", certified=certified)
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    refused = invoke("report", bundle)
    assert (refused.exit_code, "nothing is written into a bundle" in refused.stderr) == (2, True)
    out = tmp_path / "page.html"
    result = invoke("report", bundle, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    text = out.read_text(encoding="utf-8")
    assert [tuple(r) for r in Page(text).tables["summary"][1:]] == summary_rows(certified)
    assert "Not run yet" not in text


def test_a_damaged_bundle_has_no_page(tmp_path: Path) -> None:
    bundle = make(tmp_path / "made" / "bundle")
    (bundle / "certificate.json").write_text("{}")
    result = invoke("report", bundle, "--out", tmp_path / "page.html")
    assert result.exit_code == 1
    assert "'certificate.json' has 2 bytes" in result.stderr
    assert not (tmp_path / "page.html").exists()


def test_two_runs_are_compared(tmp_path: Path) -> None:
    old, new = run_of(tmp_path / "old", 0.8), run_of(tmp_path / "new", 0.6)
    result = invoke("report", new, "--against", old)
    assert (result.exit_code, result.stdout) == (0, f"{new / 'comparison.html'}\n"), result.stderr
    page = Page((new / "comparison.html").read_text(encoding="utf-8"))
    _, median, *_ = page.tables["comparison"]
    assert [cell.split()[0] for cell in median[1:]] == ["0.8000", "0.6000", "0.750x"]
    assert page.tables["changes"][1:] == [["latency_ms.engine.p50", "0.8", "0.6"]]
    assert "new against old" in page.text


def test_a_run_without_a_certificate_cannot_be_compared(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", {"prepare/prepare.json": {"model": "x"}})
    result = invoke("report", run_of(tmp_path / "new", 0.6), "--against", old)
    assert result.exit_code == 1
    assert "has no certificate yet" in result.stderr
    assert "pipeline verify" in result.stderr
