"""The command line: its commands, its options, and what wrong usage looks like."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import _judge, main
from pipeline.errors import BudgetMissedError, InconclusiveError
from pipeline.stages import STAGES
from targets import known_targets

COMMANDS = {"run", *STAGES, "check", "report", "targets", "worker", "recertify", "sign", "keygen"}
# parameters of the command, not of a stage
NO_FIELDS = {
    *("config", "as_json", "out", "folder", "imported", "exported"),
    *("bundle_data", "bundle_watchdog", "key"),
}


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def field_names(*stages: str) -> set[str]:
    return {item.name for stage in stages for item in fields(STAGES[stage].options)}


def flags_of(command: str) -> dict[str, click.Option]:
    found = main.commands[command].params
    return {p.name: p for p in found if p.name not in NO_FIELDS and isinstance(p, click.Option)}


# commands and help ----------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    listed = {line.split()[0] for line in result.stdout.partition("Commands:")[2].splitlines()[1:]}
    assert listed >= COMMANDS
    assert listed <= set(main.commands)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_and_option_explains_itself(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert main.commands[command].help
    for parameter in main.commands[command].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.opts[0] in result.stdout


def test_version_is_that_of_the_package() -> None:
    assert "0.1.0" in invoke("--version").stdout


# options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", *STAGES])
def test_flags_are_fields_are_toml_keys(command: str, tmp_path: Path) -> None:
    stages = list(STAGES) if command == "run" else [command]
    flags = flags_of(command)
    assert set(flags) == field_names(*stages)
    for name, flag in flags.items():
        assert flag.opts[0] == f"--{name.replace('_', '-')}"
    # run.toml names every field but those that are unset
    invoke(
        command,
        *(("--out", tmp_path / "r") if command == "run" else (tmp_path / "r",)),
        "--model" if "prepare" in stages else "--json",
        *(("wgates:none",) if "prepare" in stages else ()),
    )
    written = tomllib.loads((tmp_path / "r" / "run.toml").read_text())
    assert set(written) == set(STAGES)
    for stage in STAGES:
        unset = {item.name for item in fields(STAGES[stage].options) if item.default is None}
        assert set(written[stage]) == field_names(stage) - unset


def test_flags_reach_the_run_folder(tmp_path: Path) -> None:
    """A stage without its input still records how it was called; one flag of each kind."""
    flags = (
        "--budget",
        "0.70x",
        "--percentile",
        "p90",
        "--no-detach-gate-input",
        "--rounds",
        "2",
        "--margin",
        "0.1",
    )
    invoke("prune", tmp_path, *flags)
    assert (
        tomllib.loads((tmp_path / "run.toml").read_text())["prune"]
        | {
            "budget": "0.7x",
            "percentile": "p90",
            "detach_gate_input": False,
            "rounds": 2,
            "margin": 0.1,
        }
        == tomllib.loads((tmp_path / "run.toml").read_text())["prune"]
    )
    invoke("prune", tmp_path, "--detach-gate-input")
    written = tomllib.loads((tmp_path / "run.toml").read_text())["prune"]
    assert (written["detach_gate_input"], written["rounds"]) == (True, 2)


def test_config_file_is_read_and_beaten_by_a_flag(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('[prepare]\nweights = "w.pt"\nseed = 3\n[prune]\nrounds = 2\nmargin = 0\n')
    invoke("prune", tmp_path / "run", "--config", plan, "--rounds", "4")
    written = tomllib.loads((tmp_path / "run" / "run.toml").read_text())
    assert written["prepare"]["weights"] == "w.pt"
    assert written["prepare"]["seed"] == 3
    assert (written["prune"]["rounds"], written["prune"]["margin"]) == (4, 0)


# wrong usage: exit code 2, before anything is made --------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--budget", "0"), "'0' is not a budget"),
        (("--budget", "2x"), "must be below 1x"),
        (("--budget", "abc"), "'abc' is not a budget"),
        (("--budget", "-1ms"), "'-1ms' is not a budget"),
        (("--budget", "0ms"), "must be greater than zero"),
        (("--bugdet", "0.6x"), "--budget"),
        (("--samples", "many"), "'many' is not a valid integer"),
        (("--samples", "0"), "it is at least 1"),
        (("--rounds", "0"), "it is at least 1"),
        (("--processes", "0"), "it is at least 1"),
        (("--batch", "0"), "it is at least 1"),
        (("--threads", "-1"), "it is at least 0"),
        (("--train-batch", "0"), "it is at least 2"),
        (("--seed", "-1"), "it is at least 0"),
        (("--margin", "nan"), "it is a finite number"),
        (("--distill", "2"), "it is at most 1"),
        (("--percentile", "p42"), "'p50', 'p90', 'p99'"),
        (("--config", "nowhere.toml"), "does not exist"),
        (("extra",), "unexpected extra argument"),
    ],
)
def test_wrong_usage(tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    result = invoke("run", "--out", tmp_path / "run", *flags)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_run_needs_a_folder() -> None:
    assert invoke("run").exit_code == 2
    assert invoke("prune").exit_code == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[bake]\n", "plan.toml: [bake] is no stage"),
        ("[prune]\nbugdet = '0.6x'\n", "plan.toml: [prune] has no option 'bugdet'"),
        ("[calibrate]\nsamples = 'many'\n", "samples = 'many' will not do: it is a whole number"),
        ("[prune]\nbudget = '2x'\n", "a budget relative to dense must be below 1x"),
        ("[prune\n", "is not readable TOML"),
    ],
)
def test_wrong_config_file(tmp_path: Path, text: str, words: str) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    result = invoke("run", "--out", tmp_path / "run", "--config", plan)
    assert result.exit_code == 1
    first, fix = result.stderr.splitlines()
    assert first.startswith("error: ")
    assert words in first
    assert fix.startswith("  fix: ")
    assert isinstance(result.exception, SystemExit)


# verdicts -------------------------------------------------------------------------------------


def test_verdicts_become_errors_with_their_fix() -> None:
    certificate: dict[str, Any] = {"verdict": "met", "budget_ms": 4.0}
    _judge(certificate)
    with pytest.raises(BudgetMissedError, match=r"misses the budget of 4\.000 ms"):
        _judge({**certificate, "verdict": "missed"})
    with pytest.raises(InconclusiveError, match="--processes"):
        _judge({**certificate, "verdict": "inconclusive"})


def test_a_missed_count_is_told_as_one() -> None:
    certificate: dict[str, Any] = {"verdict": "missed", "budget_ms": None, "objective": "flops"}
    with pytest.raises(BudgetMissedError, match=r"misses the budget of 2,958,656 \(flops\)"):
        _judge({**certificate, "budget_count": 2_958_656})


@pytest.mark.parametrize(("verdict", "code"), [("met", 0), ("missed", 1), ("inconclusive", 3)])
def test_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, code: int
) -> None:
    certificate = {"verdict": verdict, "budget_ms": 4.0}
    monkeypatch.setattr("pipeline.run.Run.execute", lambda *_: False)
    monkeypatch.setattr("pipeline.run.Run.document", lambda *_: certificate)
    result = invoke("verify", tmp_path, "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout) == certificate
    assert len(result.stderr.splitlines()) == (2 if code else 0)


@pytest.mark.parametrize(
    ("verdict", "goes_on"), [("inconclusive", True), ("missed", False), ("met", False)]
)
def test_only_a_verify_without_a_verdict_is_open(
    tmp_path: Path, verdict: str, goes_on: bool
) -> None:
    assert not STAGES["verify"].is_open(tmp_path), "it was never done"
    (tmp_path / "certificate.json").write_text(json.dumps({"verdict": verdict}))
    assert [name for name, stage in STAGES.items() if stage.is_open(tmp_path)] == (
        ["verify"] if goes_on else []
    )


def test_ctrl_c_says_that_the_command_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.run.Run.execute", interrupted)
    result = invoke("trace", tmp_path)
    assert result.exit_code == 130
    assert result.stderr == "interrupted; the same command resumes\n"


# targets and report ---------------------------------------------------------------------------

DESCRIPTION = {
    *("name", "about", "precision", "builds", "available", "build_reasons", "reasons"),
    *("versions", "options", "install", "fingerprint"),
}


def test_targets_as_json() -> None:
    result = invoke("targets", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert [item["name"] for item in found] == sorted(known_targets())
    for item in found:
        assert set(item) == DESCRIPTION
        assert {"batch", "threads"} <= set(item["options"])
        assert item["precision"] in ("fp32", "fp16", "int8")
        assert bool(item["reasons"]) is not item["available"]
        if item["available"]:
            assert item["fingerprint"]["target"] == item["name"]
            assert item["fingerprint"]["precision"] == item["precision"]


def test_targets_as_a_table() -> None:
    result = invoke("targets")
    assert result.exit_code == 0
    assert "ort-cpu" in result.stdout
    assert "fake" not in result.stdout


def test_targets_explains_one() -> None:
    (found,) = json.loads(invoke("targets", "--explain", "fake", "--json").stdout)
    assert (found["name"], found["available"], found["reasons"]) == ("fake", True, [])
    assert "fake" in invoke("targets", "--explain", "fake").stdout


def test_missing_runtime_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.fake.FakeTarget.is_available", lambda _: ("no magic", "no luck"))
    (found,) = json.loads(invoke("targets", "--explain", "fake", "--json").stdout)
    assert (found["builds"], found["available"], found["fingerprint"]) == (False, False, None)
    assert found["reasons"] == found["build_reasons"] == ["no magic", "no luck"]
    explained = invoke("targets", "--explain", "fake").stdout
    assert "can run here: no\n    - no magic\n    - no luck\n" in explained


def test_unknown_target_gets_a_suggestion() -> None:
    result = invoke("targets", "--explain", "ort-cup")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "error: there is no target 'ort-cup'"
    assert "did you mean 'ort-cpu'?" in result.stderr


def test_report_on_a_run_that_has_done_nothing_yet(tmp_path: Path) -> None:
    invoke("prune", tmp_path / "run")
    result = invoke("report", tmp_path / "run")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"error: {tmp_path / 'run'} has no results yet",
        "  fix: run: pipeline prepare RUN",
    ]


def test_report_of_nothing_is_wrong_usage(tmp_path: Path) -> None:
    assert invoke("report", tmp_path / "nowhere").exit_code == 2
