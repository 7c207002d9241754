from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from benchmarks import coverage
from benchmarks.coverage_models import OneOutput, names


class Small(nn.Module):
    """Two convolutions and a head; `drift` is a number that no file of weights holds."""

    def __init__(self, drift: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3)
        self.second = nn.Conv2d(12, 12, 3)
        self.head = nn.Linear(12, 5)
        self.drift = drift

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.second(torch.relu(self.first(images))))
        logits: Tensor = self.head(maps.mean((2, 3))) + self.drift
        return logits


class Maps(nn.Module):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"fine": torch.ones(2, 3, 4, 4), "coarse": torch.zeros(2, 5, 2, 2)}


def tried(monkeypatch: pytest.MonkeyPatch, drift: float) -> dict[str, object]:
    def make(name: str, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Small(drift * seed).eval()

    monkeypatch.setattr(coverage, "make", make)
    monkeypatch.setattr(coverage, "image_size", lambda name: 8)
    with torch.random.fork_rng():
        return coverage.check("small")


def test_a_network_is_taken_from_its_trace_to_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tried(monkeypatch, drift=0.0)
    assert (found["outcome"], found["groups"], found["prunable"]) == ("ok", 3, 2)
    assert found["frozen"] == {"network output": 1}
    left = 27 + 1 + 9 + 1 + 5 + 5  # one channel of each
    full = 12 * 27 + 12 + 12 * 108 + 12 + 60 + 5
    assert found["share"] == pytest.approx(1 - left / full, abs=1e-3)


def test_a_network_that_its_files_do_not_bring_back_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="the reloaded network differs"):
        tried(monkeypatch, drift=1.0)


def test_every_classifier_and_40_of_timm_are_tried() -> None:
    found = names()
    assert len(set(found)) == len(found)
    classifiers = torchvision.models.list_models(module=torchvision.models)
    assert {f"torchvision:{name}" for name in classifiers} <= set(found)
    assert sum(name.startswith("timm:") for name in found) >= 40


def test_maps_of_a_backbone_become_one_output() -> None:
    joined = OneOutput(Maps())(torch.zeros(2, 3, 8, 8))
    assert joined.shape == (2, 3 * 16 + 5 * 4)


def test_lines_of_a_stopped_run_are_read_back(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    assert coverage._read(lines) == {}
    lines.write_text(json.dumps({"name": "a", "outcome": "ok"}) + "\n", encoding="utf-8")
    assert coverage._read(lines) == {"a": {"name": "a", "outcome": "ok"}}


def test_parts_share_the_list_between_them() -> None:
    every = list("abcde")
    parts = [coverage.part(f"{number}/2")(every) for number in (1, 2)]
    assert parts == [["a", "c", "e"], ["b", "d"]]
    with pytest.raises(argparse.ArgumentTypeError, match="K is from 1 to N"):
        coverage.part("3/2")
