from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.options import PruneOptions
from pipeline.stages.group_losses import wants_losses


@pytest.mark.parametrize("method", ["wgates", "l1", "group-norm", "bn-scale"])
def test_losses_are_asked_for_only_if_they_are_wanted(method: str) -> None:
    assert wants_losses(PruneOptions(method=method))
    assert not wants_losses(PruneOptions(method=method, worth="count"))


def test_where_widths_are_given_losses_decide_nothing() -> None:
    assert not wants_losses(PruneOptions(method="uniform"))
    assert not wants_losses(PruneOptions(method="random"))
    assert not wants_losses(PruneOptions(plan=Path("plan.json")))
