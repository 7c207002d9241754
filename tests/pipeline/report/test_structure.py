from __future__ import annotations

from typing import Any

import pytest

from pipeline.report.structure import branches

TRACE: dict[str, Any] = {
    "branches": [
        {"name": "b0.end", "groups": ["b0.start", "b0.middle"]},
        {"name": "b1.end", "groups": ["b1.start"]},
    ],
    "kept_branches": [{"group": "b2.start", "reason": "its sum has two readers"}],
}


def outcomes(prune: dict[str, Any] | None) -> list[str]:
    table = branches(TRACE, prune)
    assert table is not None
    return [row[-1] for row in table.rows]


def test_which_residual_branches_went() -> None:
    kept = {"stem": 16, "b0.start": 0, "b0.middle": 0, "b1.start": 8}
    prune = {"widths": [{"group": name, "full": 16, "kept": n} for name, n in kept.items()]}
    assert outcomes(prune) == ["removed", "stays", "stays: its sum has two readers"]


def test_before_pruning_they_may_go() -> None:
    assert outcomes(None) == ["may go", "may go", "stays: its sum has two readers"]


@pytest.mark.parametrize("trace", [{}, {"branches": [], "kept_branches": []}])
def test_no_table_where_blocks_are_not_removed(trace: dict[str, Any]) -> None:
    assert branches(trace, None) is None
