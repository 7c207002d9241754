from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.accuracy_arms import FORMS
from benchmarks.accuracy_outcome import beside_older, is_certified
from pipeline.files import digest


def study(commit: str, *budgets: str, adapted: float = 0.86) -> dict[str, Any]:
    return {
        "adapted": {"top1": adapted},
        "budgets": {budget: {"wgates": commit} for budget in budgets},
        "made": {budget: {"commit": commit} for budget in budgets},
    }


def joined(new: dict[str, Any], old: dict[str, Any]) -> Any:
    return beside_older({"net-seed0": new}, {"net-seed0": old})["net-seed0"]


def test_budgets_that_were_not_measured_again_stay_with_their_commit() -> None:
    found = joined(study("new", "0.65x"), study("old", "0.8x", "0.65x", "0.5x"))
    assert list(found["budgets"]) == list(found["made"]) == ["0.8x", "0.65x", "0.5x"]
    assert [made["commit"] for made in found["made"].values()] == ["old", "new", "old"]
    assert [arms["wgates"] for arms in found["budgets"].values()] == ["old", "new", "old"]


def test_budgets_of_another_dense_network_go() -> None:
    new = study("new", "0.65x")
    assert joined(new, study("old", "0.8x", adapted=0.85)) == new
    assert beside_older({"net-seed0": new}, {}) == {"net-seed0": new}


def test_seeds_that_were_not_made_again_stay() -> None:
    new, old = study("new", "0.65x"), study("old", "0.65x")
    found = beside_older({"net-seed1": new}, {"net-seed0": old, "net-seed1": old})
    assert found == {"net-seed0": old, "net-seed1": new}


def test_a_form_that_lets_blocks_go_is_that_of_older_results() -> None:
    assert "remove_blocks" not in FORMS["small"].to_json()
    assert FORMS["thin"].to_json()["remove_blocks"] is False


def test_a_certificate_holds_until_what_it_read_is_made_again(tmp_path: Path) -> None:
    assert not is_certified(tmp_path)
    for name in ("build", "verify"):
        (tmp_path / name).mkdir()
    built = tmp_path / "build" / "stage.json"
    built.write_text("{}")
    record = {"stage": "verify", "needs": {"build": digest(built)}}
    (tmp_path / "verify" / "stage.json").write_text(json.dumps(record))
    assert is_certified(tmp_path)
    built.write_text('{"options": {}}')
    assert not is_certified(tmp_path)
