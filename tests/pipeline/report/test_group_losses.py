from __future__ import annotations

from typing import Any

import pytest

from pipeline.report.group_losses import NARROW, plan_losses


@pytest.mark.parametrize(("count", "wide"), [(NARROW, False), (NARROW + 1, True)])
def test_plans_of_many_groups_have_the_whole_width_of_the_page(count: int, wide: bool) -> None:
    groups = [f"conv{number}" for number in range(count)]
    plans: list[dict[str, Any]] = [{"variant": 0, "loss": 1.0, "kept": [8] * count}]
    prune = {"widths": [{"group": group, "full": 16, "kept": 8} for group in groups]}
    assert plan_losses({"groups": groups, "plans": plans}, prune).is_wide is wide
