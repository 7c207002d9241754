from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration.widths import Plan
from pipeline.errors import DeployError
from pipeline.options import PrepareOptions, PruneOptions, Share
from pipeline.stages.solving import _settings, read_plan


def test_every_option_of_the_gates_reaches_them() -> None:
    options = PruneOptions(
        gate_lr=0.5,
        weight_lr=0.03,
        dual_lr=0.7,
        surrogate="tanh",
        gate_start="drawn",
        detach_gate_input=False,
        budget_mode="penalty",
        alpha=3.0,
        live_share=Share(0.5),
        ramp_share=Share(0.3),
        min_width=Share(0.25),
    )
    found = _settings(options, PrepareOptions(weight_decay=1e-3), {"conv1": 16})
    assert (found.gate_lr, found.weight_lr, found.weight_decay) == (0.5, 0.03, 1e-3)
    assert (found.dual_lr, found.mode, found.alpha) == (0.7, "penalty", 3.0)
    assert (found.live_share, found.ramp_share, found.min_width) == (0.5, 0.3, 0.25)
    form = found.form
    assert (form.surrogate, form.start, form.detach_input) == ("tanh", "drawn", False)
    assert form.steps == {"conv1": 16}
    plain = _settings(PruneOptions(snap_gates=False), PrepareOptions(), {"conv1": 16})
    assert plain.form.steps == {}


def test_a_plan_is_read_back(tmp_path: Path) -> None:
    plan = Plan("abc", {"conv1": (0, 2)})
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_json()))
    assert read_plan(path) == plan


@pytest.mark.parametrize("text", [None, "{", "[]", '{"schema": 1, "kept": {}}'])
def test_a_file_that_is_no_plan_is_refused_with_a_fix(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DeployError) as caught:
        read_plan(path)
    assert caught.value.fix
