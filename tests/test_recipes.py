"""Each recipe loads, and trains its own network on shards of real images, only smaller."""

from __future__ import annotations

import io
import tarfile
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from pipeline.models.zoo import create_model
from pipeline.options import FinetuneOptions, PrepareOptions, complaint
from pipeline.run import Run
from pipeline.stages import STAGES

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
PIXELS = 32
SMALLER = {"image_size": PIXELS, "train_batch": 16, "device": "cpu"}
ONE_EPOCH = {"dense_epochs": 1, "dense_lr": 0.005}


class Listener:
    def progress(self, label: str, done: int, total: int, note: str = "") -> None: ...

    def say(self, text: str) -> None: ...


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 digits as JPEG files in three shards of the form that ImageNet comes in."""
    root = tmp_path_factory.mktemp("shards")
    digits = load_digits()
    spans = {"train-0000": range(30), "train-0001": range(30, 60), "validation-00": range(60, 70)}
    for name, span in spans.items():
        with tarfile.open(root / f"imagenet1k-{name}.tar", "w") as tar:
            for index in span:
                grey = (digits.images[index] * 15).astype(np.uint8).repeat(6, 0).repeat(5, 1)
                file = io.BytesIO()
                Image.fromarray(grey).convert("RGB").save(file, "JPEG")
                label = str(digits.target[index]).encode()
                for suffix, content in (("jpg", file.getvalue()), ("cls", label)):
                    info = tarfile.TarInfo(f"{index:08d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return root


def test_the_papers_three_networks_have_recipes() -> None:
    assert [path.name for path in RECIPES] == [
        "mobilenetv2-imagenet.toml",
        "resnet34-imagenet.toml",
        "resnet50-imagenet.toml",
    ]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_key_is_an_option(recipe: Path, tmp_path: Path) -> None:
    document = tomllib.loads(recipe.read_text(encoding="utf-8"))
    for stage, values in document.items():
        known = {item.name for item in fields(STAGES[stage].options)}
        assert set(values) <= known
        for key, value in values.items():
            assert complaint(STAGES[stage].options, key, value) is None
    run = Run(tmp_path / "run", STAGES)
    run.resolve({}, recipe)
    assert run.options("prepare", PrepareOptions).model == document["prepare"]["model"]
    assert run.options("finetune", FinetuneOptions).distill == document["finetune"]["distill"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_trains_its_network(recipe: Path, tmp_path: Path, shards: Path) -> None:
    run = Run(tmp_path / "run", STAGES)
    wanted = tomllib.loads(recipe.read_text(encoding="utf-8"))["prepare"]
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    save_file(create_model(wanted["model"], 10).state_dict(), weights)
    run.resolve(
        {"data": f"webdataset:{shards}", "weights": weights, **SMALLER, **ONE_EPOCH}, recipe
    )
    run.execute(STAGES["prepare"], Listener())
    document = run.document("prepare", "prepare.json")
    assert document["model"] == wanted["model"]
    (line,) = document["history"]
    assert 1.5 < line["loss"] < 4  # of ten classes
    assert document["top1"]["test"]["n"] == 10
