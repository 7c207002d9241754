from __future__ import annotations

from dataclasses import replace

from pipeline.stages.finetune import going_on
from pipeline.training import Recipe, Regime, rate_factor


def test_where_prune_trained_the_rate_begins_at_its_peak() -> None:
    recipe = Recipe("finetune", 3, 8, 0, "lower it", Regime(ema=0.9, warmup=0.2))
    found = going_on(recipe)
    assert rate_factor("falls", 0.0, found.regime.warmup) == 1.0
    assert replace(found, regime=replace(found.regime, warmup=0.2)) == recipe
