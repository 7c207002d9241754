from __future__ import annotations

from typing import Any

from benchmarks.readme_coverage import coverage


def row(name: str, outcome: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "outcome": outcome, "reason": "", **more}


RESULT = {
    "success": "trace and reload",
    "limits": {"cpu_seconds": 240, "memory_gib": 6, "tolerance": 1e-4},
    "networks": [
        row("torchvision:a", "ok", share=0.5),
        row("torchvision:b", "ok", share=0.9),
        row("torchvision:c", "failed") | {"reason": "out of memory"},
        row("timm:d", "refused") | {"reason": "no layer can be pruned"},
    ],
    "not_run": ["timm:e"],
}


def test_outcomes_are_counted_by_source_and_all_others_named() -> None:
    lines = coverage(RESULT).splitlines()
    assert "| torchvision, classification | 3 | 2 | 0 | 1 | 70% (50%) |" in lines
    assert "| timm | 1 | 0 | 1 | 0 | – |" in lines
    assert "- `torchvision:c` failed: out of memory" in lines
    assert "- `timm:d` refused: no layer can be pruned" in lines
    assert "- Not run: timm:e." in lines
