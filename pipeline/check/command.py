"""`pipeline check`: options in, the check run, its outputs written, the verdict as exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.check.options import CheckOptions
from pipeline.errors import InconclusiveError, RegressionError
from pipeline.flags import with_fields
from pipeline.guard import guarded

if TYPE_CHECKING:
    from pipeline.check.result import CheckResult
    from pipeline.check.running import Request
    from targets.blocks import BlockRun

_path = click.Path(exists=True, path_type=Path)
_file = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class Outputs:
    """Files to write beside what is printed."""

    junit: Path | None = None
    summary: Path | None = None
    badge: Path | None = None
    html: Path | None = None
    history: Path | None = None
    samples: Path | None = None

    def write(self, result: CheckResult, blocks: BlockRun) -> None:
        """The history first: the page shows it with this check."""
        from pipeline.check.history import Entry, append_history, read_history
        from pipeline.check.outputs import append_markdown, junit, write_badge
        from pipeline.check.page import write_page
        from pipeline.files import write_atomically

        writers: dict[str, Callable[[Path], None]] = {
            "history": lambda path: append_history(path, Entry.of(result)),
            "junit": lambda path: write_atomically(path, junit(result)),
            "summary": lambda path: append_markdown(path, result),
            "badge": lambda path: write_badge(path, result),
            "html": lambda path: write_page(path, result, read_history(self.history)),
            "samples": lambda path: write_atomically(path, json.dumps(blocks.to_json()).encode()),
        }
        asked = {name: path for name in writers if (path := getattr(self, name)) is not None}
        for path in asked.values():
            _make_folder_of(path)
        for name, path in asked.items():
            writers[name](path)


def _make_folder_of(path: Path) -> None:
    from pipeline.files import disk_faults_told

    with disk_faults_told(f"cannot write {path.name}", path):
        path.parent.mkdir(parents=True, exist_ok=True)


@click.command()
@click.argument("candidate", type=_path)
@click.option("--against", "baseline", type=_path, help="the baseline: a bundle or an ONNX file")
@with_fields([CheckOptions])
@click.option(
    "--calibrate",
    is_flag=True,
    help="time CANDIDATE against itself, and keep what this runner can tell",
)
@click.option("--noise", type=_file, help="where that is kept  [default: the user's cache]")
@click.option("--history", type=_file, help="JSON lines: read for steps, and added to")
@click.option("--accept", metavar="REASON", help="take a slowdown for this reason; needs --history")
@click.option("--junit", type=_file, help="JUnit XML to write")
@click.option(
    "--summary",
    type=_file,
    envvar="GITHUB_STEP_SUMMARY",
    help="Markdown to append  [default: $GITHUB_STEP_SUMMARY, where it is set]",
)
@click.option("--badge", type=_file, help="badge to write: .svg, or .json for shields.io")
@click.option("--html", type=_file, help="page to write, with plots; it loads nothing")
@click.option("--samples", type=_file, help="JSON of every timed call to write")
@click.option("--json", "as_json", is_flag=True, help="the result as JSON on stdout")
def check(
    candidate: Path, baseline: Path | None, calibrate: bool, as_json: bool, **flags: Any
) -> None:
    """Is CANDIDATE slower than the baseline, or than its budget, on this machine?

    CANDIDATE and the baseline are bundles or ONNX files. Both are timed here, interleaved in fresh
    processes, until the interval of the slowdown lies below the margin (pass, exit code 0) or
    above it (regression, 1); if the time ends first, the check is inconclusive (3) and says why.
    A slowdown within the margin is called a regression in at most 0.5 % of all checks, and one
    beyond it passes in at most 0.5 %, however often the check looks.
    """
    outputs = Outputs(**{item.name: flags.pop(item.name) for item in fields(Outputs)})
    noise, accept = flags.pop("noise"), (flags.pop("accept") or "").strip()
    if accept and outputs.history is None:
        raise click.UsageError("--accept needs --history: what is accepted is remembered there")
    if calibrate and (baseline or accept or replace(outputs, summary=None) != Outputs()):
        raise click.UsageError("--calibrate takes one engine, and judges nothing")
    if baseline is None and (flags["margin"] is not None or flags["parity"] is not None):
        raise click.UsageError("--margin and --parity need --against: they bound a difference")

    def work() -> None:
        from pipeline.check.noise import noise_file
        from pipeline.check.running import Request

        options = CheckOptions(**{name: v for name, v in flags.items() if v is not None})
        request = Request(
            candidate, baseline, options, noise or noise_file(), outputs.history, accept
        )
        if calibrate:
            _calibrate(request, as_json)
        else:
            _check(request, outputs, as_json)

    guarded(work)


def _check(request: Request, outputs: Outputs, as_json: bool) -> None:
    from pipeline.check.outputs import draw
    from pipeline.check.running import check as run_check
    from pipeline.console import Console

    with Console(quiet=as_json) as console:
        result, blocks = run_check(request, console)
    outputs.write(result, blocks)
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        draw(result)
    _judge(result)


def _judge(result: CheckResult) -> None:
    """The verdict as an error, which has its exit code."""
    wrong = [gate for gate in result.gates if gate.verdict == result.verdict]
    told = "; ".join(f"{gate.name} {gate.found}, {gate.limit}" for gate in wrong)
    if result.verdict == "regression":
        raise RegressionError(
            f"regression: {told}",
            fix='make it as good as before, or take a slowdown: --accept "why" --history FILE',
        )
    if result.verdict == "inconclusive":
        causes = "; ".join(dict.fromkeys(f"{gate.cause}: {gate.detail}" for gate in wrong))
        raise InconclusiveError(
            f"inconclusive: {told} ({causes})",
            fix="free the machine, raise --time and --processes, or widen --margin",
        )


def _calibrate(request: Request, as_json: bool) -> None:
    from pipeline.check.noise import MARGIN
    from pipeline.check.running import calibrate as run_calibrate
    from pipeline.console import Console

    with Console(quiet=as_json) as console:
        floor, fingerprint = run_calibrate(request, console)
    margin = max(MARGIN, floor.smallest_margin)
    if as_json:
        detectable = {"margin": margin, "detectable": floor.detectable(margin)}
        found = floor.to_json() | detectable | {"fingerprint": fingerprint.to_json()}
        click.echo(json.dumps(found))
        return
    click.echo(
        f"{fingerprint.target} here: from process to process, the ratio of an engine to itself "
        f"spreads by {floor.spread:.2%}\n"
        f"smallest margin: {floor.smallest_margin:.2%}\n"
        f"smallest regression found in 95 % of checks, at a margin of {margin:.2%}: "
        f"{floor.detectable(margin):.2%}\n"
        f"kept in {request.noise}"
    )
