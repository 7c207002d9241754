from __future__ import annotations

import importlib
import pkgutil
import tomllib
from pathlib import Path

import pytest

import benchmarks
from benchmarks import common
from benchmarks.common import machines, older_result, start_from, write_result


def test_an_older_result_counts_where_what_must_be_alike_is_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    assert older_result("found.json") == {}
    written = {"effort": {"budgets": (0.8, 0.5)}, "runs": [1]}
    write_result("found.json", written)
    assert older_result("found.json")["runs"] == [1]
    assert older_result("found.json", effort=written["effort"])["runs"] == [1]
    assert older_result("found.json", effort={"budgets": (0.8,)}) == {}
    assert older_result("found.json", protocol="another") == {}


def test_parts_that_were_measured_elsewhere_are_named() -> None:
    assert machines({"a": "one", "b": "one"}) == "one"
    assert machines({"a": "one", "b": "two", "c": "one"}) == "one (b: two)"


def test_a_run_starts_with_what_was_calibrated_and_with_no_option_of_later_stages(
    tmp_path: Path,
) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    for stage in ("prepare", "trace", "calibrate", "prune"):
        (base / stage).mkdir(parents=True)
    text = (
        '# resolved\n\n[prepare]\nseed = 3\n\n[calibrate]\ntarget = "a[b]"\n\n[prune]\nrounds = 1\n'
    )
    (base / "run.toml").write_text(text)
    start_from(base, run)
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == [
        *("calibrate", "prepare", "trace")
    ]
    found = tomllib.loads((run / "run.toml").read_text())
    assert found == {"prepare": {"seed": 3}, "calibrate": {"target": "a[b]"}}
    (run / "run.toml").write_text("[prune]\nrounds = 2\n")
    start_from(base, run)  # what the run has of its own stays
    assert tomllib.loads((run / "run.toml").read_text()) == {"prune": {"rounds": 2}}


@pytest.mark.parametrize(
    "name", [found.name for found in pkgutil.iter_modules(benchmarks.__path__)]
)
def test_every_benchmark_can_be_started(name: str) -> None:
    try:
        importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if error.name != "torch_pruning":
            raise
        pytest.skip("torch-pruning, a rival, is not installed")
