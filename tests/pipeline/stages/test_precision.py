"""How many nodes go back to fp32, on a target whose every engine loses a known top-1."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from pipeline.errors import BuildError
from pipeline.options import CalibrateOptions, Share
from pipeline.serving import SETTLED
from pipeline.stages import precision
from pipeline.stages.precision import Judged, Referee, Settled, settle
from pipeline.unfused import run_onnx
from targets.base import BuildRecord, Engine, Images, Logits, Precision, TargetOptions
from targets.fake import FakeTarget
from tests.targets.digits_net import digits

NODES = (
    "Conv_1",
    "Conv_0",
    "Conv_2",
    "Gemm_0",
    "Relu_0",
    "Add_0",
    "Relu_1",
)  # the most harmful first
BATCH = 1


class LossyEngine(Engine):
    """Right on all but a share of the images it is given."""

    def __init__(self, onnx: bytes, loss: float) -> None:
        self.input_shape = (BATCH, 1, 8, 8)
        self.onnx, self.loss = onnx, loss

    def infer(self, images: Images) -> Logits:

        logits = run_onnx(self.onnx, images)
        wrong = round(self.loss * len(logits))
        logits[:wrong] = -logits[:wrong]
        return logits

    def infer_batch(self, images: Images) -> Logits:
        return self.infer(images)

    def call(self) -> None:
        """Takes no time."""

    def close(self) -> None:
        """Holds nothing."""


class LossyTarget(FakeTarget):
    """Int8 that loses `harm[node]` of top-1 for each node that is not kept in fp32."""

    precision: Precision = "int8"

    def __init__(self, harm: dict[str, float]) -> None:
        super().__init__(TargetOptions(batch=BATCH))
        self.harm = harm
        self.builds: list[tuple[str, ...]] = []

    def build(
        self,
        onnx: bytes | Path,
        out: Path,
        batches: Iterable[Images] = (),
        *,
        keep_fp32: Collection[str] = (),
    ) -> BuildRecord:
        assert isinstance(onnx, bytes)
        assert sum(len(batch) for batch in batches) == 32
        self.builds.append(tuple(keep_fp32))
        self.onnx = onnx
        out.write_text(" ".join(keep_fp32))
        return BuildRecord(out, tuple(keep_fp32))

    def load(self, engine: Path) -> Engine:
        kept = engine.read_text().split()
        return LossyEngine(self.onnx, sum(h for node, h in self.harm.items() if node not in kept))

    def fallback_order(self, onnx: bytes | Path, batches: Iterable[Images]) -> tuple[str, ...]:
        return NODES


def run_of(options: CalibrateOptions) -> SimpleNamespace:
    """What a referee asks of a run."""
    return SimpleNamespace(options=lambda *_: options, folder=Path("run"))


def referee(target: FakeTarget, limit: float = 0.01) -> Referee:
    options = CalibrateOptions(precision_loss=Share(limit))
    context = cast(Any, SimpleNamespace(run=run_of(options)))
    made, known = Referee(context, target), digits(BATCH)
    made.__dict__["batches"] = tuple(np.split(known.train[:32], 2))
    made.__dict__["judged"] = (known.images[:200], known.logits[:200].argmax(1))
    return made


def test_a_harmless_precision_keeps_nothing(tmp_path: Path) -> None:
    target = LossyTarget({"Conv_1": 0.01})
    judged = referee(target).build(digits(BATCH).onnx, tmp_path / "engine.json")
    assert judged.record.kept_fp32 == ()
    assert judged.loss == pytest.approx(0.01)
    assert judged.tried == ((0, judged.loss),)
    assert judged.n == 200


@pytest.mark.parametrize("harmful", [1, 2, 3, 4, 5, 6])
def test_the_fewest_nodes_that_hold_the_limit_go_back(tmp_path: Path, harmful: int) -> None:
    target = LossyTarget(dict.fromkeys(NODES[:harmful], 0.05))
    out = tmp_path / "engine.json"
    judged = referee(target).build(digits(BATCH).onnx, out)
    assert judged.record.kept_fp32 == NODES[:harmful]
    assert judged.loss <= 0.01
    assert out.read_text().split() == list(NODES[:harmful])  # the file is the chosen build
    assert judged.tried[0] == (0, pytest.approx(0.05 * harmful))


def test_nodes_kept_before_stay_kept(tmp_path: Path) -> None:
    target = LossyTarget({"Conv_1": 0.05})
    judged = referee(target).build(digits(BATCH).onnx, tmp_path / "e.json", ("Gemm_0",))
    assert judged.record.kept_fp32 == ("Gemm_0", "Conv_1")
    assert all("Gemm_0" in kept for kept in target.builds)


def test_a_limit_that_no_fallback_holds_is_told(tmp_path: Path) -> None:
    target = LossyTarget({"elsewhere": 0.10})
    with pytest.raises(BuildError, match=r"loses 10\.00% of top-1 on 200 .* 6 nodes") as raised:
        referee(target).build(digits(BATCH).onnx, tmp_path / "engine.json")
    assert "--precision-loss" in raised.value.fix


def test_a_target_without_fallback_is_built_once_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = LossyTarget({"elsewhere": 0.10})
    monkeypatch.setattr(target, "fallback_order", lambda *_: ())
    with pytest.raises(BuildError, match="with 0 nodes kept"):
        referee(target).build(digits(BATCH).onnx, tmp_path / "engine.json")
    assert len(target.builds) == 1


def test_a_larger_limit_allows_more(tmp_path: Path) -> None:
    target = LossyTarget({"elsewhere": 0.10})
    judged = referee(target, limit=0.2).build(digits(BATCH).onnx, tmp_path / "engine.json")
    assert judged.loss == pytest.approx(0.10)


def test_fp32_is_built_once_and_needs_no_images(tmp_path: Path) -> None:
    target = FakeTarget(TargetOptions(batch=BATCH))
    context = cast(Any, SimpleNamespace(run=run_of(CalibrateOptions())))
    judged = Referee(context, target).build(digits(BATCH).onnx, tmp_path / "engine.json")
    assert (judged.loss, judged.n, judged.record.kept_fp32) == (0.0, 0, ())
    assert judged.seconds > 0


@dataclass
class Choosing:
    """Stands in for a stage's context: two forms, of which the second is faster by so much."""

    partial: Path
    ratio: float = 0.9
    built: list[str] = field(default_factory=list)

    def write_json(self, file: str, document: Any) -> None:
        (self.partial / file).write_text(json.dumps(document))

    def in_form(self, context: Any, onnx: bytes, out: Path, form: str) -> Settled:
        self.built.append(form)
        out.write_text(form)
        target: Any = SimpleNamespace(options=TargetOptions(quantizer=form))
        return Settled(target, cast(Any, None), Judged(BuildRecord(out), 0.0, 0.0, 0, ()))

    def best(self, made: Any) -> Any:
        ratios = [(1.0, (1.0, 1.0)), (self.ratio, (self.ratio, self.ratio))][: len(made)]
        return made[int(self.ratio < 1) if len(made) > 1 else 0], ratios

    def settled(self) -> Any:
        found = settle(cast(Any, self), b"", self.partial / "anchor.bin")
        document = json.loads((self.partial / SETTLED).read_text())
        assert found.target.options.quantizer == document["quantizer"]
        assert found.dense.record.engine.read_text() == document["quantizer"]
        assert [path.name for path in self.partial.iterdir() if path.name != SETTLED] == [
            "anchor.bin"
        ]
        return document


def test_a_run_that_goes_on_keeps_to_the_form_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Choosing(tmp_path)
    monkeypatch.setattr(precision, "_forms", lambda context: ("qdq", "nncf"))
    monkeypatch.setattr(precision, "_in_form", context.in_form)
    monkeypatch.setattr(precision, "_best", context.best)
    first = context.settled()
    assert (first["quantizer"], context.built) == ("nncf", ["qdq", "nncf"])
    context.ratio = 1.1  # the clock would choose the other one now
    assert context.settled() == first
    assert context.built == ["qdq", "nncf", "nncf"]
