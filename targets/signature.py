"""The one form of network that every target takes: images in, logits out, every size fixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from targets.errors import DeployError

FORM = "export a network with one float32 image input and one logits output"
MOST_NUMBERS = 1 << 31  # of an input or output; a damaged graph must not fill the memory


@dataclass(frozen=True)
class Port:
    """An input or output as a runtime describes it; an unknown size is a name or None."""

    name: str
    shape: tuple[int | str | None, ...]
    is_float32: bool

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} ({sizes})"


@dataclass(frozen=True)
class Signature:
    """Names and sizes of the input (N, C, H, W) and the output (N, classes)."""

    input_name: str
    output_name: str
    input_shape: tuple[int, int, int, int]
    classes: int


def check_signature(
    inputs: Sequence[Port], outputs: Sequence[Port], *, batch: int, error: type[DeployError]
) -> Signature:
    """The signature of a network, or `error` saying how it differs from what targets take."""
    source = _only("input", inputs, error)
    sink = _only("output", outputs, error)
    input_shape, output_shape = _sizes(source, error), _sizes(sink, error)
    if len(input_shape) != 4:
        raise error(f"the input must be images (N, C, H, W), not {source}", fix=FORM)
    if len(output_shape) != 2 or output_shape[0] != input_shape[0]:
        said = f"the output must be logits ({input_shape[0]}, classes), not {sink}"
        raise error(said, fix=FORM)
    if input_shape[0] != batch:
        fix = f"export it with batch {batch}, or choose --batch {input_shape[0]}"
        raise error(f"the model has batch {input_shape[0]}, the target batch {batch}", fix=fix)
    if max(math.prod(input_shape), math.prod(output_shape)) > MOST_NUMBERS:
        raise error(f"{source} or {sink} is larger than any memory", fix="export smaller images")
    n, channels, height, width = input_shape
    return Signature(source.name, sink.name, (n, channels, height, width), output_shape[1])


def _only(kind: str, ports: Sequence[Port], error: type[DeployError]) -> Port:
    if len(ports) != 1:
        named = ", ".join(map(str, ports)) or "none"
        raise error(f"a model needs exactly one {kind}; this has {len(ports)}: {named}", fix=FORM)
    if not ports[0].is_float32:
        raise error(f"the {kind} {ports[0]} must be float32", fix=FORM)
    return ports[0]


def _sizes(port: Port, error: type[DeployError]) -> tuple[int, ...]:
    sizes = tuple(size for size in port.shape if isinstance(size, int) and size > 0)
    if len(sizes) != len(port.shape):
        raise error(f"{port} has a size that is not fixed", fix="export with static shapes")
    return sizes
