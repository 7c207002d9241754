"""FP16 graphs: float32 in and out, fp16 inside, and fp32 kept only where parity needs it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.errors import BuildError
from targets.precision.reference import (
    Runner,
    cpu_runtime,
    node_names,
    parsed,
    relative_error,
    require_nodes,
    shrunk,
)
from targets.precision.storage import rounded_storage, without_round_trips

TOLERANCE = 5e-3
RANDOM_IMAGES = 8  # where no images are given


@dataclass(frozen=True)
class HalfModel:
    """An fp16 graph, and how far its logits are from those of the fp32 graph."""

    onnx: bytes  # fp16 inside, float32 input and output
    kept_fp32: tuple[str, ...]  # nodes raised for parity or asked for, in graph order
    error: float  # largest |fp16 - fp32| logit over the largest |fp32| logit


def to_fp16(
    onnx: bytes,
    images: NDArray[np.float32],
    *,
    tolerance: float = TOLERANCE,
    keep_fp32: Collection[str] = (),
) -> HalfModel:
    """Convert a float32 graph to a typed fp16 graph whose logits agree within `tolerance`.

    `images` (n, C, H, W), normalised, are what both graphs are compared on; if n is 0, random
    ones of mean 0 and deviation 1 are. Where the tolerance breaks, nodes are raised to fp32: a
    set from which none can be left out. BuildError if the tolerance cannot be met.

    The comparison stores every fp16 tensor in 16 bits and calculates in 32, as tensor cores do.
    """
    model = parsed(onnx)
    require_nodes(model, keep_fp32)
    trial = _Trial(model, images, frozenset(keep_fp32))
    raised = _raised(model, trial, tolerance)
    kept = tuple(name for name in node_names(model) if name in raised | trial.asked)
    converted = convert(model, kept)
    Runner(converted)  # refuses what its types forbid
    return HalfModel(converted.SerializeToString(), kept, trial.error(frozenset(raised)))


class _Trial:
    """Errors of the fp16 graph for sets of raised nodes; each set is tried once."""

    def __init__(self, model: Any, images: NDArray[np.float32], asked: frozenset[str]) -> None:
        reference = Runner(model)
        self._model = model
        self._images = images if len(images) else _random(reference.signature.input_shape)
        self._expected = reference.finite_logits(self._images)
        self._errors: dict[frozenset[str], float] = {}
        self.asked = asked

    def error(self, raised: frozenset[str]) -> float:
        kept = raised | self.asked
        if kept not in self._errors:
            stored = rounded_storage(convert(self._model, kept))
            logits = Runner(stored, optimised=False).logits(self._images)
            self._errors[kept] = relative_error(logits, self._expected)
        return self._errors[kept]


def _raised(model: Any, trial: _Trial, tolerance: float) -> frozenset[str]:
    """The nodes to raise so that the error stays within the tolerance."""
    if trial.error(frozenset()) <= tolerance:
        return frozenset()
    names = tuple(name for name in node_names(model) if name not in trial.asked)

    def passes(raised: frozenset[str]) -> bool:
        return trial.error(raised) <= tolerance

    if not passes(frozenset(names)):
        error = trial.error(frozenset(names))
        raise BuildError(
            f"the logits differ by {error:.1e} of the largest even with every node in fp32, "
            f"where {tolerance:.1e} is allowed",
            fix="allow a larger tolerance, or choose an fp32 target",
        )
    return frozenset(shrunk(names, passes))


def convert(model: Any, keep_fp32: Collection[str]) -> Any:
    """A typed fp16 copy of a ModelProto, with the nodes named in `keep_fp32` left in fp32."""
    cpu_runtime()
    # this copy of the converter comes with the runtime, needs no other package and imports in
    # 0.2 s; modelopt's would bring torch
    converter = importlib.import_module("onnxruntime.transformers.float16")
    copied = type(model)()
    copied.CopyFrom(model)
    _separate_weights(copied.graph, frozenset(keep_fp32))
    with _quiet(converter.logger):
        converted = converter.convert_float_to_float16(
            copied,
            keep_io_types=True,
            node_block_list=sorted(keep_fp32),
            disable_shape_infer=True,  # `parsed` did
        )
    return without_round_trips(converted)


def _separate_weights(graph: Any, keep_fp32: frozenset[str]) -> None:
    """Give nodes in fp32 their own copy of a weight that an fp16 node reads too."""
    weights = {weight.name: weight for weight in graph.initializer}
    shared = {
        name for node in graph.node if node.name not in keep_fp32 for name in node.input
    } & weights.keys()
    for node in graph.node:
        if node.name not in keep_fp32:
            continue
        for position, name in enumerate(node.input):
            if name in shared:
                copied = f"{name}.{node.name}.fp32"
                if copied not in weights:
                    weights[copied] = graph.initializer.add()
                    weights[copied].CopyFrom(weights[name])
                    weights[copied].name = copied
                node.input[position] = copied


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Silence one logger: weights out of fp16's range are found by parity, not by warnings."""
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _random(shape: tuple[int, int, int, int]) -> NDArray[np.float32]:
    generator = np.random.default_rng(0)
    return generator.standard_normal((RANDOM_IMAGES, *shape[1:]), dtype=np.float32)
