from __future__ import annotations

from benchmarks.table_training import training

GATED = {
    "environment": {"machine": {"threads": 1, "device": "a small CPU"}},
    "device": "cpu",
    "goal": 1.15,
    "cases": [
        {
            "case": "net at 32, batch 64",
            "mode": "projection",
            "time_ratio": {"median": 1.0312, "quartiles": [1.02, 1.05]},
            "memory_ratio": 1.001,
            "choosing_s": 0.034,
        }
    ],
}
LOOP = {
    "settings": {"model": "net", "batch": 32},
    "limit": 1.1,
    "regimes": {"defaults": {"ratio": 0.994, "ratio_middle_half": [0.98, 1.01]}},
    "layouts": [{"network": "net", "size": 32, "ratio": 0.8, "ratio_middle_half": [0.7, 0.9]}],
}


def test_the_tables_hold_the_results_and_their_goals() -> None:
    found = training(GATED, LOOP)
    assert "a small CPU, one thread" in found
    row = "| net at 32, batch 64 | projection | 1.031 (1.020 to 1.050) | 1.001 | 0.03 |"
    assert row in found.splitlines()
    assert "defaults 0.994 (0.980 to 1.010)" in found
    assert "net at 32 0.800 (0.700 to 0.900)" in found
    assert "Goal: at most 1.15." in found
    assert "Goal: at most 1.1." in found
