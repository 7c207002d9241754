"""The run's images: what was asked for, and the same for all stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.run import Context, Run
from pipeline.stages import STAGES
from pipeline.stages.common import DATA_CARD, data_of

from .test_counterfactual import Silent

ARRAYS = """
import torch

def small():
    images = torch.arange(40 * 3 * 8 * 8, dtype=torch.uint8).view(40, 3, 8, 8)
    labels = torch.arange(40) % 2
    return {"train": (images, labels), "test": (images[:9], labels[:9]), "classes": ["a", "b"]}
"""


def context_of(folder: Path, stage: str, **options: object) -> Context:
    file = folder / "arrays.py"
    file.write_text(ARRAYS)
    run = Run(folder / "run", STAGES)
    run.resolve({"data": f"{file}:small", **options})
    return Context(run, STAGES[stage], folder / "run", Silent())


def test_another_size_than_asked_for_is_refused(tmp_path: Path) -> None:
    assert data_of(context_of(tmp_path, "prepare", image_size=8)).size("test") == 9
    with pytest.raises(DataError, match="gave 8 x 8 pixels, --image-size is 16") as caught:
        data_of(context_of(tmp_path, "prepare", image_size=16))
    assert "accept image_size=" in caught.value.fix


def test_images_that_prepare_did_not_see_are_refused_by_later_stages(tmp_path: Path) -> None:
    seen = data_of(context_of(tmp_path, "prepare", image_size=8)).card
    folder = tmp_path / "run" / "prepare"
    folder.mkdir()
    (folder / DATA_CARD).write_text(seen.to_json())
    assert data_of(context_of(tmp_path, "finetune", image_size=8)).card == seen
    (folder / DATA_CARD).write_text(seen.to_json().replace(seen.digest, "0" * 64))
    with pytest.raises(DataError, match="is not what it was when prepare ran"):
        data_of(context_of(tmp_path, "finetune", image_size=8))
    assert data_of(context_of(tmp_path, "prepare", image_size=8)).card == seen
