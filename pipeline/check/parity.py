"""Whether engines compute the same: the candidate and its own ONNX graph, candidate and baseline.

Without data the images are made up: they tell differences of arithmetic, not of accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from pipeline.check.result import Gate
from pipeline.check.sides import Side, Sides
from pipeline.errors import DeployError
from pipeline.reference import parity
from pipeline.serving import TOLERANCE
from pipeline.unfused import run_onnx
from targets.base import Images, Logits

FEWEST_IMAGES = 8
SEED = 0


@dataclass(frozen=True)
class Difference:
    """How far two sets of logits on the same n images differ."""

    max_rel: float  # largest |difference| over the largest |logit| of the reference
    label_flips: int
    n: int

    @classmethod
    def of(cls, found: Logits, reference: Logits) -> Difference:
        if found.shape != reference.shape:
            raise DeployError(
                f"one gives logits {found.shape}, the other {reference.shape}",
                fix="compare networks of the same task",
            )
        differs = parity(reference, found)
        return cls(differs["max_rel"], differs["label_flips"], differs["n"])

    def __str__(self) -> str:
        return f"{self.max_rel:.1e}, {self.label_flips} of {self.n} labels differ"


def check_parity(sides: Sides, allowed: float | None) -> tuple[tuple[Gate, ...], tuple[str, ...]]:
    """The gates `engine parity` and, where asked for, `parity`; and notes on what was not judged.

    `allowed` bounds the difference to the baseline; None: it is told only.
    """
    ours = _logits(sides, sides.candidate)
    gates, notes = [], []
    reference = _reference(sides.candidate, ours[0])
    if isinstance(reference, str):
        notes.append(reference)
    else:
        tolerance = TOLERANCE[sides.target.precision]
        gates.append(_gate("engine parity", Difference.of(ours[1], reference), tolerance))
    if sides.baseline is not None:
        theirs = _logits(sides, sides.baseline)
        if theirs[0].shape != ours[0].shape:
            raise DeployError(
                f"the engines take different images: {ours[0].shape[1:]}, {theirs[0].shape[1:]}",
                fix="compare engines of one input size",
            )
        difference = Difference.of(ours[1], theirs[1])
        if allowed is None:
            notes.append(f"candidate and baseline on made-up images: {difference}")
        else:
            gates.append(_gate("parity", difference, allowed))
    return tuple(gates), tuple(notes)


def _gate(name: str, found: Difference, allowed: float) -> Gate:
    # not `>`: logits that are not finite differ by NaN
    agrees = found.max_rel <= allowed
    return Gate(
        name,
        "pass" if agrees else "regression",
        str(found),
        f"at most {allowed:.1e}",
        found.max_rel,
        None,
    )


def _logits(sides: Sides, side: Side) -> tuple[Images, Logits]:
    """Made-up images (n, C, H, W) that fill whole batches, and the engine's logits on them."""
    with sides.watch.load(sides.target, side.engine) as engine:
        batch, *image = engine.input_shape
        n = batch * -(-FEWEST_IMAGES // batch)
        images = np.random.default_rng(SEED).standard_normal((n, *image), dtype=np.float32)
        return images, sides.watch.infer(engine, images)


def _reference(side: Side, images: Images) -> Logits | str:
    """The graph's own logits, computed without fusions; or why there are none."""
    if side.onnx is None:
        return "the candidate has no ONNX graph to hold its engine against"
    if find_spec("onnxruntime") is None:
        return "engine and ONNX graph were not compared: onnxruntime is not installed"
    return run_onnx(side.onnx, images)
