from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.common import machines, older_result, write_result


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
