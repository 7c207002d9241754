"""The command: exit codes, outputs, history and acceptance, calibration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.check.noise import NoiseFloor, read_floors, store_floor
from pipeline.cli import main
from targets import load_target
from targets.base import TargetOptions
from tests.targets.tiny_onnx import tiny_model
from tests.test_imports import CALL_COMMAND, TORCH, run_without

from .conftest import noisy
from .test_sides import bundle_of

Script = Callable[[Iterable[float]], list[str]]
Run = Callable[..., Result]


@pytest.fixture
def run(
    networks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """`pipeline check CANDIDATE ...` on the fake target, with no cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def invoke(candidate: Path | str, *arguments: object) -> Result:
        path = networks.get(str(candidate), Path(candidate))
        given = [str(networks.get(str(item), item)) for item in arguments]
        if not path.is_dir():
            given += ["--target", "fake"]
        return CliRunner().invoke(main, ["check", str(path), *given])

    return invoke


@pytest.mark.parametrize(
    ("ratios", "code", "verdict"),
    [
        (noisy(1.0, 0.003), 0, "pass"),
        (noisy(1.06, 0.003), 1, "regression"),
        (noisy(1.0, 0.2), 3, "inconclusive"),
    ],
)
def test_exit_code_is_the_verdict(
    run: Run, measured: Script, ratios: list[float], code: int, verdict: str
) -> None:
    measured(ratios)
    result = run("same", "--against", "base")
    assert result.exit_code == code, result.output
    assert f"verdict: {verdict}" in result.stdout
    assert result.stderr.count("error: ") == (code != 0)
    assert "Traceback" not in result.output


def test_json_holds_the_evidence(run: Run, measured: Script, tmp_path: Path) -> None:
    measured(noisy(1.06, 0.003))
    samples = tmp_path / "samples.json"
    result = run("same", "--against", "base", "--json", "--samples", samples)
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["verdict"] == "regression"
    (slowdown, engine) = document["gates"]
    assert slowdown["name"] == "slowdown"
    assert 0.05 < slowdown["interval"][0] < slowdown["value"] < slowdown["interval"][1] < 0.07
    assert engine["name"] == "engine parity"
    assert document["processes"] == len(document["candidate"]["latency"]["block_ms"]) == 10
    assert len(json.loads(samples.read_text())["blocks"]["baseline"]) == 10


def test_all_outputs_are_written(
    run: Run, measured: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(noisy(1.0, 0.003))
    summary = tmp_path / "step.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    files = {name: tmp_path / "new" / f"out.{name}" for name in ("junit", "badge", "history")}
    flags = [part for name, path in files.items() for part in (f"--{name}", path)]
    for count in (1, 2):
        assert run("same", "--against", "base", *flags).exit_code == 0
        assert len(files["history"].read_text().splitlines()) == count
        assert summary.read_text().count("## Latency check: pass") == count
    assert files["junit"].read_bytes().startswith(b"<?xml")
    assert files["badge"].read_text().startswith("<svg")


def test_an_accepted_slowdown_passes_and_is_the_new_level(
    run: Run, measured: Script, tmp_path: Path
) -> None:
    history = tmp_path / "history.jsonl"
    against = ("--against", "base", "--history", history)
    measured(noisy(1.06, 0.003))
    assert run("same", *against).exit_code == 1
    accepted = run("same", *against, "--accept", "new head")
    assert accepted.exit_code == 0
    assert "verdict: pass (accepted)" in accepted.stdout
    later = run("same", *against)
    assert later.exit_code == 0
    assert "was accepted on" in later.stdout
    measured(noisy(1.12, 0.003))
    assert run("same", *against).exit_code == 1
    # another baseline was not accepted against
    measured(noisy(1.06, 0.003))
    assert run("same", "--against", "other", "--history", history).exit_code == 1


def test_nothing_to_accept_is_said(run: Run, measured: Script, tmp_path: Path) -> None:
    measured(noisy(1.0, 0.003))
    history = tmp_path / "h"
    result = run("same", "--against", "base", "--history", history, "--accept", "why not")
    assert "there was no slowdown to accept" in result.stdout
    assert json.loads(history.read_text())["accepted"] == ""


@pytest.mark.parametrize(
    ("budget", "code"), [("2.5ms", 0), ("1.5ms", 1), ("0.6x", 1), ("1.0 parsec", 2)]
)
def test_a_budget_needs_no_baseline(run: Run, measured: Script, budget: str, code: int) -> None:
    measured(noisy(1.0, 0.003))
    result = run("base", "--budget", budget)
    assert result.exit_code == code, result.output


def test_a_bundle_brings_its_budget(run: Run, measured: Script, tmp_path: Path) -> None:
    measured(noisy(1.0, 0.003))
    result = run(bundle_of(tmp_path / "bundle"))
    assert result.exit_code == 1
    assert "regression: budget 2.00" in result.stderr
    assert "the budget is the bundle's own, 1ms" in result.stdout


def test_a_relative_budget_counts_where_it_was_settled_only(
    run: Run, measured: Script, tmp_path: Path
) -> None:
    measured(noisy(1.0, 0.003))
    certificate = b'{"schema": 1, "budget": "0.6x", "budget_ms": 3.0, "percentile": "p50"}'
    here = load_target("fake", TargetOptions(batch=2, threads=1)).fingerprint().to_json()
    near = bundle_of(tmp_path / "near", certificate=certificate)
    assert run(near).exit_code == 0
    far = bundle_of(tmp_path / "far", certificate=certificate, fingerprint=here | {"device": "far"})
    alone = run(far)
    assert alone.exit_code == 1
    assert "nothing to hold the candidate against" in alone.stderr
    beside = run(far, "--against", near)
    assert beside.exit_code == 0
    assert "the bundle's budget, 0.6x of dense, was settled on another set-up" in beside.stdout
    assert "candidate: measured here anew, certified on another set-up (device" in beside.stdout


def test_a_budget_of_a_tail_does_not_bound_the_median(
    run: Run, measured: Script, tmp_path: Path
) -> None:
    measured(noisy(1.0, 0.003))  # of 2 ms each
    certificate = b'{"schema": 1, "budget": "9ms", "budget_ms": 9.0, "percentile": "p99"}'
    bundle = bundle_of(tmp_path / "tail", certificate=certificate)
    result = run(bundle, "--against", bundle, "--percentile", "p50")
    assert result.exit_code == 0, result.output
    assert "the bundle's budget, 9ms, is one of its p99, and not judged here" in result.stdout


def test_neighbours_of_a_certified_baseline_are_no_regression(
    run: Run, measured: Script, tmp_path: Path
) -> None:
    measured(noisy(1.0, 0.003))  # of 2 ms each
    certificate = (
        b'{"schema": 1, "budget": "0.6x", "budget_ms": 1.5, "percentile": "p50",'
        b' "latency_ms": {"engine": {"p50": %s}}}'
    )
    candidate, baseline, untold = (
        bundle_of(tmp_path / name, certificate=certificate % p50)
        for name, p50 in (("candidate", b"1.4"), ("baseline", b"1.4"), ("untold", b"null"))
    )
    assert run(candidate, "--budget", "1.5ms").exit_code == 1
    assert run(candidate, "--against", untold).exit_code == 1
    beside = run(candidate, "--against", baseline)
    assert beside.exit_code == 3
    assert "budget: inconclusive (machine): the baseline, certified at 1.400 ms" in beside.stdout


@pytest.mark.parametrize(
    "certificate",
    [
        b'{"schema": 1, "budget": "1ms", "budget_ms": 1.0, "percentile": "p98"}',
        b'{"schema": 1, "budget": "1ms", "budget_ms": 1.0, "percentile": ["p50"]}',
        b'{"schema": 1, "budget": "1ms", "budget_ms": -1, "percentile": "p50"}',
        b'{"schema": 1, "budget": "1ms", "budget_ms": 1e999, "percentile": "p50"}',
        b'{"schema": 1, "budget": "1ms", "budget_ms": true, "percentile": "p50"}',
        b'{"schema": 1, "budget": {}, "budget_ms": 1.0, "percentile": "p50"}',
    ],
)
def test_a_certificate_that_makes_no_sense_is_refused(
    run: Run, tmp_path: Path, certificate: bytes
) -> None:
    result = run(bundle_of(tmp_path / "bundle", certificate=certificate))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the certificate's ")


def test_a_damaged_history_is_refused_before_anything_is_timed(
    run: Run, measured: Script, tmp_path: Path
) -> None:
    (tmp_path / "h").write_text("no json")
    targets = measured(noisy(1.0, 0.003))
    result = run("same", "--budget", "9ms", "--history", tmp_path / "h")
    assert result.exit_code == 1
    assert "line 1 of h is damaged" in result.stderr
    assert targets == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--accept", "x"),
        ("--calibrate", "--against", "base"),
        ("--calibrate", "--junit", "x"),
        ("--budget", "1ms", "--margin", "2%"),
        ("--budget", "1ms", "--parity", "0.1"),
        ("--margin", "0"),
        ("--processes", "8"),
        ("--percentile", "p98"),
        ("--time", "nan"),
    ],
)
def test_wrong_usage_is_2(run: Run, arguments: tuple[str, ...]) -> None:
    result = run("same", *arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


def test_calibration_is_kept_and_rules_margins(run: Run, measured: Script, tmp_path: Path) -> None:
    noise = tmp_path / "noise.json"
    against = ("--against", "base", "--noise", noise)
    measured(noisy(1.0, 0.003))
    assert "so its noise is not known: pipeline check --calibrate" in run("same", *against).stdout
    result = run("base", "--calibrate", "--noise", noise)
    assert result.exit_code == 0, result.output
    assert "smallest margin: 0." in result.stdout
    ((digest, floor),) = read_floors(noise).items()
    assert len(floor.log_ratios) == 40
    assert "--calibrate" not in run("same", *against).stdout
    refused = run("same", *against, "--margin", "0.01%")
    assert refused.exit_code == 1
    assert "below what this runner can tell" in refused.stderr
    store_floor(noise, digest, NoiseFloor(**(vars(floor) | {"smallest_margin": 0.08})))
    measured(noisy(1.06, 0.003))
    raised = run("same", *against)
    assert raised.exit_code == 0
    assert "the margin was raised from 2.5% to 8.0%" in raised.stdout


def test_calibration_as_json_and_into_the_cache(run: Run, measured: Script, tmp_path: Path) -> None:
    measured(noisy(1.0, 0.003))
    document = json.loads(run("base", "--calibrate", "--json").stdout)
    assert document["margin"] == 0.025
    assert document["detectable"] > 0.025
    assert document["fingerprint"]["target"] == "fake"
    assert (tmp_path / "cache" / "wgates" / "noise.json").exists()
    short = run("base", "--calibrate", "--time", "0.000001")
    assert short.exit_code == 3
    assert "1 of at least 10 processes ran" in short.stderr


def test_real_processes_without_torch(networks: dict[str, Path], tmp_path: Path) -> None:
    """Whole checks on the fake target, which needs no clock: 8 fresh processes each."""
    (tmp_path / "wider.onnx").write_bytes(tiny_model(width=64))
    common = ["--against", networks["base"], "--target", "fake", "--json"]
    files = ["--noise", tmp_path / "noise.json", "--history", tmp_path / "history.jsonl"]
    arguments = [
        "check",
        networks["same"],
        *common,
        *files,
        "--block-seconds",
        "0.01",
        "--processes",
        "9",
    ]
    printed = run_without(TORCH, CALL_COMMAND, *map(str, arguments))
    found, _, imported = printed.rpartition("imported:")
    assert json.loads(found)["verdict"] == "pass"
    assert not set(TORCH) & set(imported.split())
    arguments[1] = tmp_path / "wider.onnx"
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 1
    gates: list[dict[str, Any]] = json.loads(result.stdout)["gates"]
    assert gates[0]["verdict"] == "regression"
    assert gates[0]["value"] > 0.025
