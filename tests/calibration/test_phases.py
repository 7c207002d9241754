from __future__ import annotations

import time

import pytest

from calibration.phases import TIMING, Phases


def test_every_second_is_in_one_phase_or_in_the_rest() -> None:
    phases = Phases()
    for _ in range(2):
        with phases.spent_on("build"):
            time.sleep(0.01)
    with phases.spent_on(TIMING):
        time.sleep(0.03)
    time.sleep(0.01)
    found = phases.to_json()
    assert set(found["seconds"]) == {"build", TIMING, "other"}
    assert found["seconds"]["build"] >= 0.02
    assert found["seconds"][TIMING] >= 0.03
    assert found["seconds"]["other"] >= 0.01
    assert sum(found["share"].values()) == pytest.approx(1.0)
    assert sum(found["seconds"].values()) == pytest.approx(found["wall_s"])


def test_a_phase_that_fails_took_its_time_all_the_same() -> None:
    phases = Phases()

    def fail() -> None:
        with phases.spent_on("build"):
            time.sleep(0.01)
            raise ValueError("it was to fail")

    with pytest.raises(ValueError, match="to fail"):
        fail()
    assert phases.to_json()["seconds"]["build"] >= 0.01
