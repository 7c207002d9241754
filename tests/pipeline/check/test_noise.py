"""What a runner can tell: the noise floor, its file, and the margins that it allows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.check.boundary import Boundary
from pipeline.check.latency import side_of
from pipeline.check.noise import (
    MARGIN,
    NoiseFloor,
    noise_file,
    read_floors,
    settled_margin,
    store_floor,
)
from pipeline.errors import DeployError

BOUNDARY = Boundary.of(40)


def floor_of(spread: float, n: int = 40) -> NoiseFloor:
    logs = spread * np.random.default_rng(0).standard_normal(n)
    return NoiseFloor.of(
        logs, BOUNDARY, at="2026-01-02", engine="x", percentile="p50", seconds_per_process=1.0
    )


def test_floor_grows_with_the_noise() -> None:
    quiet, noisy = floor_of(0.002), floor_of(0.02)
    assert quiet.spread == pytest.approx(0.002, rel=0.4)
    assert noisy.smallest_margin == pytest.approx(10 * quiet.smallest_margin, rel=0.1)


def test_a_margin_at_the_floor_is_passed_in_most_checks_and_twice_it_is_found() -> None:
    floor = floor_of(0.02, n=200)
    generator = np.random.default_rng(5)
    limit = math.log1p(floor.smallest_margin)
    slower = math.log1p(floor.detectable(floor.smallest_margin))
    passed = found = 0
    for _ in range(300):
        for shift in (0.0, slower):
            logs = shift + generator.choice(floor.log_ratios, 40) * generator.choice([-1, 1], 40)
            looks = (side_of(BOUNDARY.interval(logs[:n]), limit) for n in range(1, 41))
            verdict = next((look for look in looks if look != "inconclusive"), "inconclusive")
            passed += shift == 0 and verdict == "pass"
            found += shift > 0 and verdict == "regression"
    # the floor comes from as many draws as 200 values allow: 95 % within a few percent
    assert passed / 300 >= 0.9
    assert found / 300 >= 0.9


def test_floors_are_kept_by_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "noise.json"
    assert read_floors(path) == {}
    first, second = floor_of(0.002), floor_of(0.01)
    store_floor(path, "a", first)
    store_floor(path, "b", second)
    assert read_floors(path) == {"a": first, "b": second}
    store_floor(path, "a", second)
    assert read_floors(path)["a"] == second


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"a": {}}',
        '{"a": null}',
        '{"a": {"at": "", "engine": "", "log_ratios": ["x"], "spread": 1, "smallest_margin": 1, '
        '"seconds_per_process": 1}}',
        '{"a": {"at": "", "engine": "", "log_ratios": [1], "spread": NaN, "smallest_margin": 1, '
        '"seconds_per_process": 1}}',
        '{"a": {"at": 1, "engine": "", "log_ratios": [1], "spread": 1, "smallest_margin": 1, '
        '"seconds_per_process": 1}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_refused_with_its_fix(tmp_path: Path, text: str) -> None:
    path = tmp_path / "noise.json"
    path.write_text(text)
    with pytest.raises(DeployError, match="is damaged") as error:
        read_floors(path)
    assert "--calibrate" in error.value.fix


def test_the_file_lies_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert noise_file() == tmp_path / "wgates" / "noise.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert noise_file() == tmp_path / ".cache" / "wgates" / "noise.json"


def test_margins_below_the_floor_are_refused_or_raised() -> None:
    quiet, noisy = floor_of(0.002), floor_of(0.08)
    assert noisy.smallest_margin > MARGIN > quiet.smallest_margin
    assert settled_margin(None, quiet) == (MARGIN, "")
    assert settled_margin(0.03, quiet) == (0.03, "")
    raised, note = settled_margin(None, noisy)
    assert raised == noisy.smallest_margin
    assert note.startswith("the margin was raised from 2.5% to")
    with pytest.raises(DeployError, match="below what this runner can tell") as error:
        settled_margin(0.01, noisy)
    suggested = float(error.value.fix.split("--margin ")[1].split("%")[0]) / 100
    assert settled_margin(suggested, noisy) == (suggested, "")


def test_a_runner_that_is_not_calibrated_says_so() -> None:
    assert settled_margin(0.01, None)[0] == 0.01
    margin, note = settled_margin(None, None)
    assert margin == MARGIN
    assert "pipeline check --calibrate" in note
