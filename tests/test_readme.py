"""The README's numbers are those of the committed result files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_tables_are_what_the_results_say() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.readme", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_stage_is_in_the_readme() -> None:
    from pipeline.stages import STAGES

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for stage in STAGES.values():
        assert f"| `{stage.name}` |" in text
