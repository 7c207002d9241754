from __future__ import annotations

from benchmarks.readme_calibration import _machines


def test_cases_that_another_machine_measured_are_named() -> None:
    usual = {f"net{number}": {"fingerprint": {"device": "CPU A"}} for number in range(3)}
    assert _machines(usual) == "CPU A"
    other = {"odd": {"fingerprint": {"device": "CPU B"}}}
    assert _machines({**usual, **other}) == "CPU A (odd: CPU B)"
