from __future__ import annotations

from typing import Any

from benchmarks.table_coverage import coverage


def row(name: str, outcome: str, **more: Any) -> dict[str, Any]:
    found = {"name": name, "outcome": outcome, "reason": "", "seconds": 20.0, "peak_mib": 1536}
    return {**found, **more}


RESULT = {
    "success": "trace and reload",
    "limits": {"tolerance": 1e-4},
    "networks": [
        row("torchvision:a", "ok", share=0.5),
        row("torchvision:b", "ok", share=0.9),
        row("torchvision:c", "failed", reason="out of memory", seconds=None, peak_mib=None),
        row("timm:d", "refused", reason="no layer can be pruned", seconds=61.2),
    ],
    "not_run": ["timm:e"],
}


def test_outcomes_are_counted_by_source_and_all_others_named() -> None:
    lines = coverage(RESULT).splitlines()
    assert "20 CPU seconds and 1.5 GiB (median), at most 61 s and 2 GiB." in lines[0]
    assert "| torchvision, classification | 3 | 2 | 0 | 1 | 70% (50%) |" in lines
    assert "| timm | 1 | 0 | 1 | 0 | – |" in lines
    assert "- `torchvision:c` failed: out of memory" in lines
    assert "- `timm:d` refused: no layer can be pruned" in lines
    assert "- Not run: timm:e." in lines
