"""Accuracy of candidate and baseline on the same images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.check.accuracy import check_accuracy, open_data, range_batches
from pipeline.check.sides import BuildWish, Sides, open_sides
from pipeline.data.base import DataCard, ImageData, Split
from pipeline.errors import DataError
from targets import load_target
from targets.base import Engine, Images, Logits, TargetOptions
from tests.targets.tiny_onnx import images

from .test_sides import bundle_of


class Labelled(ImageData):
    """60 random images, 45 of them labelled by one engine, the others by another or the same."""

    def __init__(self, engine: Path, other: Path | None = None, size: int = 8) -> None:
        self.pixels = images(60)[:, :, :size, :]
        target = load_target("ort-cpu", TargetOptions(batch=2, threads=1))
        with target.load(engine) as first, target.load(other or engine) as second:
            answers = [loaded.infer(images(60)).argmax(1) for loaded in (first, second)]
        self.answers = np.concatenate([answers[0][:45], answers[1][45:]])
        self.card = DataCard(
            "made up", tuple("abcde"), (3, size, 8), (0.0,) * 3, (1.0,) * 3, {}, (), "0", ()
        )

    def labels(self, split: Split) -> Tensor:
        return torch.from_numpy(self.answers)

    def take(self, split: Split, indices: Tensor) -> Tensor:
        return torch.from_numpy(self.pixels)[indices]

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(())


def opened(tmp_path: Path, candidate: Path, baseline: Path | None) -> Sides:
    return open_sides(candidate, baseline, BuildWish("ort-cpu", 1, tmp_path))


def test_equal_engines_lose_nothing(networks: dict[str, Path], tmp_path: Path) -> None:
    sides = opened(tmp_path, networks["same"], networks["base"])
    gate = check_accuracy(sides, Labelled(sides.candidate.engine), 0.0)
    assert (gate.name, gate.verdict, gate.value) == ("accuracy", "pass", 0.0)
    assert gate.found.startswith("top-1 100.00 %, +0.00 points lost")


def test_a_loss_beyond_what_is_allowed_is_a_regression(
    networks: dict[str, Path], tmp_path: Path
) -> None:
    sides = opened(tmp_path, networks["other"], networks["base"])
    assert sides.baseline is not None
    data = Labelled(sides.baseline.engine, sides.candidate.engine)
    gate = check_accuracy(sides, data, 0.01)
    assert (gate.verdict, gate.value) == ("regression", 0.5)
    assert gate.interval is not None
    assert 0.19 < gate.interval[0] < 0.5 < gate.interval[1] < 0.8
    assert check_accuracy(sides, data, 0.5).verdict == "pass"
    # the other way round it is a gain
    turned = Sides(sides.target, sides.baseline, sides.candidate)
    assert check_accuracy(turned, data, 0.0).value == -0.5


def test_without_a_baseline_top1_is_told(networks: dict[str, Path], tmp_path: Path) -> None:
    sides = opened(tmp_path, networks["base"], None)
    gate = check_accuracy(sides, Labelled(sides.candidate.engine), 0.0)
    assert (gate.verdict, gate.found) == ("pass", "top-1 100.00 % of 60 images")


def test_images_that_do_not_fit_are_refused(networks: dict[str, Path], tmp_path: Path) -> None:
    sides = opened(tmp_path, networks["base"], None)
    with pytest.raises(DataError, match=r"takes images \(3, 8, 8\), the data has \(3, 6, 8\)"):
        check_accuracy(sides, Labelled(sides.candidate.engine, size=6), 0.0)


def test_a_bundle_gets_images_normalised_as_it_was_made_for(
    networks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Labelled(opened(tmp_path, networks["base"], None).candidate.engine)
    bundle = bundle_of(tmp_path / "bundle", mean=(0.5,) * 3, std=(2.0,) * 3)
    sides = open_sides(bundle, None, BuildWish(None, 1, tmp_path))
    seen, infer = [], sides.watch.infer

    def heard(_: object, engine: Engine, given: Images) -> Logits:
        seen.append(given)
        return infer(engine, given)

    monkeypatch.setattr(type(sides.watch), "infer", heard)
    check_accuracy(sides, data, 0.0)
    assert np.allclose(np.concatenate(seen), (data.pixels - 0.5) / 2, atol=1e-6)


def test_a_bundle_refuses_other_classes(networks: dict[str, Path], tmp_path: Path) -> None:
    engine = opened(tmp_path, networks["base"], None).candidate.engine
    bundle = bundle_of(tmp_path / "bundle", classes=tuple("abced"))
    sides = open_sides(bundle, None, BuildWish(None, 1, tmp_path))
    with pytest.raises(DataError, match="the classes of made up are not the engine's"):
        check_accuracy(sides, Labelled(engine), 0.0)


def test_data_is_opened_at_the_size_of_the_network() -> None:
    data = open_data("digits", 8)
    assert data.card.image_shape[1:] == (8, 8)
    (batch,) = range_batches(data)
    assert batch.dtype == np.float32
    assert len(batch) == 128
